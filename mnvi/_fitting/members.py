"""Models of one architecture that train together, in one vmap over their stacked parameters; or one alone."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from .._inputs import Inputs
from ..likelihoods.base import Draws, over
from ..module import kl, sampling
from ..optim import parameter_groups
from .models import Objective


class Members(ABC):
    """K objectives: the parameters to train, and what they give on a batch, for all K at once.

    A batch is ``stacked`` where its tensors have the members in front, (K, B, …), each its own examples.
    """

    parameters: dict[str, nn.Parameter]

    def __init__(self, objectives: Sequence[Objective], module: Objective) -> None:
        self.objectives, self.count = list(objectives), len(objectives)
        self.module = module  # what is called
        self.device = next(self.objectives[0].model.parameters()).device

    @abstractmethod
    def losses(self, batch: Inputs, stacked: bool) -> tuple[Tensor, Tensor]:
        """Mean NLL and whole KL of every member, shapes (K,), in the mode that the module is in."""

    @abstractmethod
    def outputs(self, batch: Inputs, stacked: bool) -> Draws:
        """What the likelihoods read of one output of every member, (K, N, …)."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What training changes of the members, for a checkpoint."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Put :meth:`state` back."""

    @abstractmethod
    def write_back(self) -> None:
        """Put the trained parameters and buffers into the models and likelihoods."""

    def member(self, k: int) -> Objective:
        """Objective k as it is now, to look at."""
        return self.objectives[k]

    @torch.no_grad()
    def draws(self, batch: Inputs, num_samples: int, stacked: bool) -> list[Draws]:
        """For every member what its likelihood reads of ``num_samples`` outputs in eval mode, (S, N, …)."""
        inputs = Inputs(batch.positional, batch.named)
        self.module.eval()
        with sampling(self.module):
            drawn = [self.outputs(inputs, stacked) for _ in range(num_samples)]
        together = over(lambda *each: torch.stack(each, 1), *drawn)  # (K, S, N, …)
        return [over(lambda each, k=k: each[k], together) for k in range(self.count)]

    def groups(self, lr: float, log_diagonals: float) -> list[dict[str, Any]]:
        """A group for each rate, those of :func:`mnvi.parameter_groups` but for large weights; log-scales apart.

        Adam moves every entry by the rate, so a unit with p inputs moves by up to p of them: a weight with more than
        64 inputs has √(64/p) of the rate.
        """
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        inputs = {weight: weight[0].numel() for weight in map(_matrix, self.module.modules()) if weight is not None}
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for group in parameter_groups(self.module, lr, log_diagonals=log_diagonals):
            for p in filter(lambda p: p.requires_grad, group["params"]):
                rate = group["lr"] * min(1.0, (64 / inputs.get(p, 64)) ** 0.5)
                scales = group["name"] == "log_diagonals"
                found = groups.setdefault((scales, rate), {**group, "lr": rate, "params": []})
                found["params"].append(self.parameters[names[p]])
        return list(groups.values())


class OneMember(Members):
    """One objective, called as it is and trained in place."""

    def __init__(self, objective: Objective, *, compile: bool = False) -> None:
        super().__init__([objective], objective)
        self.parameters = dict(objective.named_parameters())
        self.call: Any = torch.compile(objective) if compile else objective

    def losses(self, batch: Inputs, stacked: bool) -> tuple[Tensor, Tensor]:
        nll, divergence = self.call(batch.positional, batch.named, batch.target)
        return nll[None], divergence[None]

    def outputs(self, batch: Inputs, stacked: bool) -> Draws:
        return over(lambda each: each[None], self.module(batch.positional, batch.named))

    def state(self) -> dict[str, Tensor]:
        return self.module.state()

    def load(self, state: dict[str, Tensor]) -> None:
        self.module.load(state)

    def write_back(self) -> None:
        return  # they are where they belong


class StackedMembers(Members):
    """Several objectives, called by ``torch.func.vmap`` with copies of their parameters and buffers in front.

    :meth:`write_back` puts those into the models, which stay as they are until then.
    """

    def __init__(self, objectives: Sequence[Objective], *, compile: bool = False) -> None:
        super().__init__(objectives, copy.deepcopy(objectives[0]))  # whose own tensors are never read
        with torch.autocast(self.device.type, enabled=False):  # under which torch cannot stack the float16 masks
            stacked, self.buffers = stack_module_state(self.objectives)  # type: ignore[arg-type]
        self.aliases = _aliases(self.module)
        trains = {name: parameter.requires_grad for name, parameter in self.module.named_parameters()}
        self.parameters = {name: nn.Parameter(value.detach(), trains[name]) for name, value in stacked.items()}
        self.call: Any = torch.compile(self._mapped) if compile else self._mapped

    def losses(self, batch: Inputs, stacked: bool) -> tuple[Tensor, Tensor]:
        return self.call(batch.positional, batch.named, batch.target, stacked)

    def outputs(self, batch: Inputs, stacked: bool) -> Draws:
        return self._mapped(batch.positional, batch.named, None, stacked)

    def _mapped(self, positional: tuple, named: dict, target: Tensor | None, stacked: bool) -> Any:
        def one(parameters: dict, buffers: dict, *batch: Any) -> Any:
            tensors = {**parameters, **buffers}
            tensors |= {name: tensors[first] for name, first in self.aliases.items()}
            return functional_call(self.module, tensors, batch, tie_weights=False)

        batch = (positional, named, target)
        axes = tree_map(lambda each: 0 if stacked and isinstance(each, Tensor) else None, batch)
        return vmap(one, in_dims=(0, 0, *axes), randomness="different")(self.parameters, self.buffers, *batch)

    @torch.no_grad()
    def write_back(self) -> None:
        for k, objective in enumerate(self.objectives):
            kl(self._write(objective, k).model)  # which sets the buffers that priors fit: inside vmap they stay

    def member(self, k: int) -> Objective:
        return self._write(copy.deepcopy(self.objectives[k]), k)

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in {**self.parameters, **self.buffers}.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _write(self, objective: Objective, k: int) -> Objective:
        own = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
        for name, value in {**self.parameters, **self.buffers}.items():
            own[name].copy_(value[k])
        return objective


def members(objectives: Sequence[Objective], *, compile: bool = False) -> Members:
    """The objectives, to be trained together; models and likelihoods are theirs again by ``write_back``."""
    if len(objectives) == 1:
        return OneMember(objectives[0], compile=compile)
    return StackedMembers(objectives, compile=compile)


def _aliases(module: nn.Module) -> dict[str, str]:
    """The other names of tensors that several modules share, and the first name of each.

    A module that is shared itself counts once: torch's own ``tie_weights`` would leave vmap's tensors in it.
    """
    first, found = {}, {}
    for prefix, owner in module.named_modules():
        for name, tensor in {**owner._parameters, **owner._buffers}.items():
            full = f"{prefix}.{name}" if prefix else name
            if tensor is not None and first.setdefault(id(tensor), full) != full:
                found[full] = first[id(tensor)]
    return found


def _matrix(module: nn.Module) -> Tensor | None:
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.dim() > 1 else None
