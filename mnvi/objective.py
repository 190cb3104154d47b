"""The evidence lower bound as a loss, and a schedule for the weight of its KL."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import number, positive_int
from ._models.forgotten_parameters import ForgottenParameters
from .likelihoods import Likelihood
from .likelihoods._misfits import rows
from .likelihoods.base import described
from .module import kl, warn_without_draws, warn_without_posterior, with_posterior

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class KLWarmup:
    """A schedule: the KL's weight rises linearly from 1/``steps`` at the first step to 1 at step ``steps``.

    A step is one of the optimiser; tell :class:`ELBO` with ``accumulate`` how many losses make one.
    """

    steps: int

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)

    def __call__(self, step: int) -> float:
        """The weight at ``step`` = 0, 1, 2, ..."""
        return min(1.0, (step + 1) / self.steps)

    def of_tensor(self, step: Tensor) -> Tensor:
        """The same of a tensor, for compiled graphs."""
        return ((step + 1) / self.steps).clamp(max=1.0)


class ELBO(nn.Module):
    """Negative evidence lower bound per training example, in nats: loss = NLL + weight·KL/``num_data``.

    With the weight 1, −``num_data``·loss is at most the log evidence log p(data) in expectation (Graves, 2011; Blundell
    et al., 2015, arXiv:1505.05424). A weight that rises from 0 lets the means settle first (Sønderby et al., 2016,
    arXiv:1602.02282).

    Args:
        num_data: number of training examples (of the whole training set, not of a batch).
        kl_weight: a number ≥ 0, or a schedule ``step -> number`` such as :class:`KLWarmup`. ``step``, an int, counts
            the optimiser's steps so far. It is kept in a buffer, so it is saved with whatever module this one is part
            of. Losses computed without gradients do not count. In a graph of torch.compile a schedule other than
            :class:`KLWarmup` is a constant: each step compiles anew.
        likelihood: an object of :mod:`mnvi.likelihoods`, a part of this module: its parameters are among
            ``elbo.parameters()``, and ``elbo(output, target, model)`` takes the model's output. Give the optimiser
            both: ``mnvi.parameter_groups([model, elbo])``.
        accumulate: how many losses of a model in training mode make one step of the optimiser. All of them have the
            same weight of the KL; as for any mean loss, divide each by ``accumulate`` before ``backward()``.

    Warns:
        UserWarning: the model has no Bayesian layer, or is in eval mode where gradients are wanted; or, once, a step of
            the model's optimiser has left parameters as they were that the loss depends on beside the model, a learnt
            noise for one, and no optimiser has them.

    Example:
        >>> elbo = mnvi.ELBO(num_data=60_000, kl_weight=mnvi.KLWarmup(steps=1_000))
        >>> loss, nll, kl = elbo(F.cross_entropy(model(x), y), model)
        >>> elbo = mnvi.ELBO(num_data=400, likelihood=mnvi.likelihoods.Gaussian())
        >>> optimiser = torch.optim.Adam(mnvi.parameter_groups([model, elbo]))
        >>> loss, nll, kl = elbo(model(x), y, model)
    """

    step: Tensor
    losses: Tensor

    def __init__(
        self,
        num_data: int,
        kl_weight: float | Callable[[int], float] = 1.0,
        likelihood: Likelihood | None = None,
        *,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.num_data = positive_int("num_data", num_data)
        if isinstance(kl_weight, type):
            raise TypeError(f"kl_weight must be a number or a schedule, got {kl_weight!r}, a class")
        if not callable(kl_weight):
            number("kl_weight (without a schedule)", kl_weight, 0)
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be an object such as mnvi.likelihoods.Categorical(), got {likelihood!r}")
        self.kl_weight = kl_weight
        self.likelihood = likelihood
        self.accumulate = positive_int("accumulate", accumulate)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("losses", torch.zeros((), dtype=torch.long), persistent=False)  # since the last step
        self._count = _StepCount()
        self._forgotten = ForgottenParameters()

    def reset_parameters(self) -> None:
        """Begin the schedule anew."""
        self.step.zero_()
        self.losses.zero_()

    def forward(
        self, nll: Any, target: Tensor | nn.Module | None = None, model: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nll, kl) of ``elbo(nll, model)``, or with a likelihood of ``elbo(output, target, model)``.

        Args:
            nll: the batch's mean negative log-likelihood, a scalar; or the model's output.
            target: what the likelihood compares the output with.
            model: whose KL it is.

        Returns:
            The loss in nats per training example, the mean NLL of the batch, and the whole KL in nats, neither weighted
            nor divided.

        Raises:
            ValueError: ``nll`` is not a scalar, or the loss is not finite (naming where that comes from: layers,
                parameters and, where the likelihood is this module's, rows of the batch).
        """
        if model is None and isinstance(target, nn.Module):
            model, target = target, None
        if model is None:
            raise TypeError(f"give the model whose KL is to be added: elbo(nll, model), got {described(target)}")
        output, nll = nll, _mean_nll(nll) if target is None else self._nll(nll, target)
        warn_without_posterior(model, "its KL is 0", stacklevel=5)
        warn_without_draws(model, stacklevel=5)
        weight = self._weight()
        divergence = kl(model)
        loss = nll + weight * divergence / self.num_data
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(loss)):
            raise ValueError(why_not_finite(loss, nll, model, None if target is None else self._bad_rows(output)))
        if model.training and torch.is_grad_enabled():  # a reentrant checkpoint runs once without, and once with
            self._advance()
            self._forgotten.look(loss, model, self.parameters())
        return loss, nll, divergence

    def _nll(self, output: Any, target: Any) -> Tensor:
        if self.likelihood is None:
            raise TypeError("elbo(output, target, model) needs ELBO(num_data, likelihood=…); without: elbo(nll, model)")
        return self.likelihood(output, target)

    def _bad_rows(self, output: Any) -> str | None:
        """The rows of the model's output that are not finite, in words; ``None`` where all are."""
        assert self.likelihood is not None
        draws = self.likelihood.read(output)
        bad = [~each.isfinite().flatten(1).all(1) for each in ([draws] if isinstance(draws, Tensor) else draws)]
        found = torch.stack(bad).any(0)
        return ("all rows" if bool(found.all()) else rows(found)) if bool(found.any()) else None

    def _weight(self) -> float | Tensor:
        if not callable(self.kl_weight):
            return self.kl_weight
        if self._traced():
            return self.kl_weight.of_tensor(self.step)  # type: ignore[attr-defined]
        step = self._count.step(self.step, self.losses)
        weight = self.kl_weight(step)
        if not isinstance(weight, Real) or not 0 <= weight < float("inf"):
            raise ValueError(f"the schedule kl_weight gave {weight} at step {step}, not a finite number ≥ 0")
        return weight

    def _advance(self) -> None:
        # A transform of torch.func refuses to write to a buffer, which it takes for an input.
        with nullcontext() if torch.compiler.is_compiling() else torch._C._DisableFuncTorch():
            self.losses.add_(1)
            self.step.add_(self.losses // self.accumulate)
            self.losses.remainder_(self.accumulate)
        if callable(self.kl_weight) and not self._traced():
            self._count.advance(self.step, self.accumulate)

    def extra_repr(self) -> str:
        return f"num_data={self.num_data}, kl_weight={self.kl_weight}, accumulate={self.accumulate}"

    def _traced(self) -> bool:
        """Whether the step is a tensor of a compiled graph: an int would be a constant there."""
        return torch.compiler.is_compiling() and isinstance(self.kl_weight, KLWarmup)

    def __setstate__(self, state: dict) -> None:
        if "_parameters" in state:
            super().__setstate__({"_forgotten": ForgottenParameters(), **state})
        else:  # pickled by 0.1, when it was no module
            self.__init__(state["num_data"], state["kl_weight"])
            self.step.fill_(state["step"])

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + "step")
        if isinstance(saved, int):  # a state of 0.1
            state_dict[prefix + "step"] = torch.tensor(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.step.is_meta:
            self.losses.zero_()  # gradients are not saved either
            self._count.read(self.step, self.losses)


class _StepCount:
    """The numbers in the buffers as ints, without waiting for their device.

    They are counted along, and read from the device again only where something else has changed the step.
    """

    def __init__(self) -> None:
        self.steps, self.losses = 0, 0
        self.seen: tuple[Tensor, int] | None = None  # the buffer, and its version

    def step(self, step: Tensor, losses: Tensor) -> int:
        """The number in ``step``."""
        known = torch.compiler.is_compiling() or (
            self.seen is not None and self.seen[0] is step and self.seen[1] == step._version
        )
        if not known:
            self.read(step, losses)
        return self.steps

    def read(self, step: Tensor, losses: Tensor) -> None:
        """Take both numbers from their device."""
        self.steps, self.losses = int(step), int(losses)
        self.seen = (step, step._version)

    def advance(self, step: Tensor, accumulate: int) -> None:
        """One more loss, as the buffers have counted it."""
        self.losses += 1
        self.steps, self.losses = self.steps + self.losses // accumulate, self.losses % accumulate
        if not torch.compiler.is_compiling():
            self.seen = (step, step._version)


_Count = _StepCount  # its name in pickles of earlier versions


def _mean_nll(nll: Any) -> Tensor:
    """``nll``, if it is a scalar tensor."""
    if not isinstance(nll, Tensor):
        raise TypeError(f"nll must be a tensor, got {described(nll)}")
    if nll.dim() != 0:
        raise ValueError(f"nll must be a scalar, the mean over the batch; got shape {tuple(nll.shape)}")
    return nll


def why_not_finite(loss: Tensor, nll: Tensor, model: nn.Module, bad_rows: str | None) -> str:
    """The message of a loss that is not finite: which part of it is not, and what may help.

    Args:
        bad_rows: the rows of the model's output that are not finite, in words, where there are such and they are known.
    """
    layers = {name or "the model": layer for name, layer in with_posterior(model)}
    bad = {name: layer for name, layer in layers.items() if not bool(torch.isfinite(layer.kl()))}
    causes = [f"the KL of {', '.join(name + _fault(layer) for name, layer in bad.items())}"] if bad else []
    if not bool(torch.isfinite(nll)):
        where = f": the model's output is not finite in {bad_rows}" if bad_rows else ""
        causes.append(
            f"the negative log-likelihood ({nll.item()}{f' in {nll.dtype}' if nll.dtype in HALF else ''}{where})"
        )
        broken = [] if bad else [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
        causes += [f"the parameters {', '.join(broken)} (not finite)"] * bool(broken)
    what = " and ".join(causes) or f"the sum of the negative log-likelihood and the KL in {loss.dtype}"
    low = nll.dtype in HALF or any(p.dtype in HALF for layer in bad.values() for p in layer.parameters())
    advice = "look at inputs and targets, which may hold NaN or no row at all; a smaller learning rate may help"
    advice = "keep parameters in float32 and use torch.autocast" if low else advice
    return f"the loss is not finite, because of {what}; {advice}"


def _fault(layer: nn.Module) -> str:
    """Which parameters are at fault, in brackets, where that can be seen."""
    broken = [f"{name} is not finite" for name, p in layer.named_parameters() if not bool(torch.isfinite(p).all())]
    broken += sorted({f"its parameters are {p.dtype}" for p in layer.parameters() if p.dtype in HALF})
    return f" ({', '.join(broken)})" if broken else ""
