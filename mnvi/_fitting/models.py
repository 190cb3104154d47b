"""The models of a fit: what came as them, and whether several are of one architecture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..likelihoods import Likelihood
from ..module import kl
from .attributes import described_attributes

UNSAVED = "non-persistent buffer "  # before the name of one in Objective.state()


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

    def state(self) -> dict[str, Any]:
        """``state_dict()``, and the buffers that it leaves out, which a training may change too."""
        parts = [(f"{path}." if path else "", part) for path, part in self.named_modules()]
        names = [
            (path + name, part._buffers[name]) for path, part in parts for name in part._non_persistent_buffers_set
        ]
        return {**self.state_dict(), **{UNSAVED + name: value.detach() for name, value in names if value is not None}}

    def load(self, state: dict[str, Any]) -> None:
        """Put :meth:`state` back."""
        self.load_state_dict({name: value for name, value in state.items() if not name.startswith(UNSAVED)})
        for name, value in state.items():
            if name.startswith(UNSAVED):
                path, _, leaf = name.removeprefix(UNSAVED).rpartition(".")
                buffers = self.get_submodule(path)._buffers
                like = buffers[leaf]  # None where a call makes it
                device = next(self.model.parameters()).device if like is None else like.device
                buffers[leaf] = value.to(device, copy=True)


def checked_models(model: Any) -> list[nn.Module]:
    """The models that ``model`` stands for, one or several.

    Raises:
        TypeError: something else.
        ValueError: there is nothing to train, or several are not of one architecture, or share a part.
    """
    if isinstance(model, (Sequence, nn.ModuleList)):
        models = list(model)
    else:
        models = [model] if isinstance(model, nn.Module) else []
    if not models or not all(isinstance(each, nn.Module) for each in models):
        raise TypeError(f"model must be a torch.nn.Module or a list of them, got {model!r}")
    if len(set(map(id, models))) < len(models):
        raise ValueError("one model is in the list twice; copy.deepcopy makes another")
    if not any(p.requires_grad for p in models[0].parameters()):
        raise ValueError("the model has no parameters to train: none, or none that requires grad")
    if any(p.is_meta for p in models[0].parameters()):
        raise ValueError("the model is on the meta device, without values; see model.to_empty")
    if len(models) > 1 and any(is_lazy(p) for each in models for p in [*each.parameters(), *each.buffers()]):
        raise ValueError("a model has lazy layers, which have no shape yet: call each model with one batch first")
    _check_apart(models)
    for k, each in enumerate(models[1:], 1):
        difference = _difference(models[0], each)
        if difference:
            raise ValueError(
                f"models that train together must have one architecture; model {k} differs from model 0: {difference}"
            )
    return models


def checked_device(device: Any, model: nn.Module) -> torch.device:
    """``device``, or where the model is.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return next(model.parameters()).device
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r} ({error})") from error
    if found.type == "meta":
        raise ValueError("nothing can be trained on the meta device")
    return found


def check_likelihood_apart(models: Sequence[nn.Module], likelihood: Any) -> None:
    """Raise where several models have the one likelihood as a part: each trains a copy of it."""
    if len(models) > 1 and any(part is likelihood for model in models for part in model.modules()):
        raise ValueError("the likelihood is a part of one of the models; several models train a copy of it each")


@contextmanager
def modes_kept(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put every module back into training or eval mode where what is inside fails."""
    before = [(part, part.training) for model in models for part in model.modules()]
    try:
        yield
    except BaseException:
        for part, training in before:
            part.training = training
        raise


def _check_apart(models: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for k, model in enumerate(models):
        parts = [*model.named_modules(remove_duplicate=False), *model.named_parameters(), *model.named_buffers()]
        for name, part in parts:
            if owners.setdefault(id(part), k) != k:
                raise ValueError(
                    f"models {owners[id(part)]} and {k} share {name}, a {type(part).__name__}; copy it by copy.deepcopy"
                )


def check_attributes(objectives: Sequence[Objective], passing: set[tuple[str, str]]) -> None:
    """Raise where several models differ in an attribute that is not one of ``passing``: all run with the first's.

    Raises:
        ValueError: they do.
    """
    mine = described_attributes(objectives[0], passing)
    for k, each in enumerate(objectives[1:], 1):
        its = described_attributes(each, passing)
        for name in [*mine, *its]:
            if mine.get(name) != its.get(name):
                raise ValueError(
                    f"models that train together share their attributes; model {k} differs from model 0: "
                    f"{name.replace(' model.', ' ', 1)} is {its.get(name)}, not {mine.get(name)}; "
                    "a tensor of each model's own is a buffer (register_buffer)"
                )


def described_tree(model: nn.Module) -> dict[str, str]:
    """What makes up an architecture: every module, parameter and buffer in words, without values and devices."""
    found = {}
    for what, description in (("module", _module), ("parameter", _tensor), ("buffer", _tensor)):
        named = getattr(model, {"module": "named_modules"}.get(what, f"named_{what}s"))()
        found |= {f"{what} {name or 'itself'}": description(value) for name, value in named}
    return found


def _difference(first: nn.Module, other: nn.Module) -> str:
    """In what two models differ, in words, but for their attributes; empty if in nothing."""
    mine, its = described_tree(first), described_tree(other)
    for name in [*mine, *its]:
        if mine.get(name) != its.get(name):
            return f"{name} is {its.get(name)}, not {mine.get(name)}"
    devices = [{str(p.device) for p in model.parameters()} for model in (first, other)]
    return "" if devices[0] == devices[1] else f"it is on {', '.join(devices[1])}, not {', '.join(devices[0])}"


def _module(module: nn.Module) -> str:
    pruned = getattr(module, "_is_pruned", None)
    parts = [part for part in (module.extra_repr(), "" if pruned is None else f"pruned={pruned}") if part]
    return f"{type(module).__name__}({', '.join(parts)})"


def _tensor(tensor: Tensor) -> str:
    frozen = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else ", frozen"
    return f"{tuple(tensor.shape)}, {tensor.dtype}{frozen}"
