"""Models of one architecture that train together, in one vmap over their stacked parameters."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from .._inputs import Inputs
from ..likelihoods import Likelihood
from ..likelihoods.base import Draws, over
from ..module import kl, sampling
from ..optim import parameter_groups


class Objective(nn.Module):
    """A model and its likelihood: (mean NLL of a batch, whole KL), in nats."""

    def __init__(self, model: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.model, self.likelihood = model, likelihood

    def forward(self, positional: tuple, named: dict, target: Tensor | None = None) -> Any:
        """The two numbers; without a target what the likelihood reads of one output."""
        output = self.model(*positional, **named)
        if target is None:
            return self.likelihood.read(output)
        return self.likelihood(output, target), kl(self.model)


class Members:
    """K objectives: the parameters to train, and what they give on a batch, for all K at once.

    One objective is called as it is; several of them, of one architecture, by ``torch.func.vmap``, with copies of
    their parameters and buffers stacked in front. :meth:`write_back` puts those into the models.
    """

    def __init__(self, objectives: Sequence[Objective], *, compile: bool = False) -> None:
        self.objectives = list(objectives)
        self.count = len(self.objectives)
        self.base = self.objectives[0]
        self.device = next(self.base.model.parameters()).device
        if self.count == 1:
            self.parameters, self.buffers = dict(self.base.named_parameters()), {}
            self.call: Any = torch.compile(self.base) if compile else self.base
            return
        _check_alike(self.objectives)
        stacked, self.buffers = stack_module_state(self.objectives)  # type: ignore[arg-type]
        self.parameters = {name: nn.Parameter(value.detach()) for name, value in stacked.items()}
        # The skeleton's own tensors are never read; a copy, so that the first model stays as it is until the end.
        self.skeleton = copy.deepcopy(self.base)
        self.call = torch.compile(self._vmapped) if compile else self._vmapped

    def groups(self, lr: float, log_diagonals: float) -> list[dict[str, Any]]:
        """A group for every parameter, with the rates of :func:`mnvi.parameter_groups`, less for large weights.

        Adam moves every entry by the rate, so a unit with p inputs moves by up to p of them: a weight with more than
        64 inputs has √(64/p) of the rate.
        """
        groups = []
        inputs = {each.weight: each.weight[0].numel() for each in self.base.modules() if _has_matrix(each)}
        names = {parameter: name for name, parameter in self.base.named_parameters()}
        for group in parameter_groups(self.base, lr, log_diagonals=log_diagonals):
            for p in group["params"]:
                rate = group["lr"] * min(1.0, (64 / inputs.get(p, 64)) ** 0.5)
                groups.append({**group, "lr": rate, "params": [self.parameters[names[p]]]})
        return groups

    def losses(self, batch: Inputs, own: bool) -> tuple[Tensor, Tensor]:
        """Mean NLL and whole KL of every member, shapes (K,)."""
        if self.count == 1:
            nll, divergence = self.call(batch.positional, batch.named, batch.target)
            return nll[None], divergence[None]
        self.skeleton.train()
        return self.call(batch, own)

    @torch.no_grad()
    def draws(self, batch: Inputs, num_samples: int, own: bool) -> list[Draws]:
        """For every member what its likelihood reads of ``num_samples`` outputs in eval mode, (S, N, …)."""
        batch = Inputs(batch.positional, batch.named)
        module = self.base if self.count == 1 else self.skeleton
        was_training = module.training
        module.eval()
        try:
            with sampling(module):
                drawn = [self._output(batch, own) for _ in range(num_samples)]
        finally:
            module.train(was_training)
        stacked = over(lambda *each: torch.stack(each, 1), *drawn)  # (K, S, N, …)
        return [over(lambda each, k=k: each[k], stacked) for k in range(self.count)]

    def _output(self, batch: Inputs, own: bool) -> Draws:
        if self.count == 1:
            return over(lambda each: each[None], self.base(batch.positional, batch.named))
        return self._vmapped(batch, own)

    def _vmapped(self, batch: Inputs, own: bool) -> Any:
        def one(parameters: dict, buffers: dict, positional: tuple, named: dict, target: Tensor | None) -> Any:
            return functional_call(self.skeleton, (parameters, buffers), (positional, named, target))

        axis = 0 if own else None
        target = None if batch.target is None else axis
        mapped = vmap(one, in_dims=(0, 0, axis, axis, target), randomness="different")
        return mapped(self.parameters, self.buffers, batch.positional, batch.named, batch.target)

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the trained parameters and buffers into the models and likelihoods."""
        if self.count == 1:
            return
        for k, objective in enumerate(self.objectives):
            own = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
            for name, value in {**self.parameters, **self.buffers}.items():
                own[name].copy_(value[k])

    def state(self) -> dict[str, Tensor]:
        """What training changes of the members, for a checkpoint."""
        if self.count == 1:
            return self.base.state_dict()
        return {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put :meth:`state` back."""
        if self.count == 1:
            self.base.load_state_dict(state)
            return
        for name, value in {**self.parameters, **self.buffers}.items():
            value.copy_(state[name])


def _check_alike(objectives: list[Objective]) -> None:
    forms = [[(name, p.shape, p.dtype) for name, p in each.named_parameters()] for each in objectives]
    for k, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"models that train together must have equal architectures; number {k} differs from the first"
            )


def _has_matrix(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() > 1
