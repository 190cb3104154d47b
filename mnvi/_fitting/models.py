"""The models of a fit: what came as them, and whether several are of one architecture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..module import kl


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


def checked_models(model: Any) -> list[nn.Module]:
    """The models that ``model`` stands for, one or several.

    Raises:
        TypeError: something else.
        ValueError: there is nothing to train, or several are not of one architecture.
    """
    models = [model] if isinstance(model, nn.Module) else list(model) if isinstance(model, Sequence) else []
    if not models or not all(isinstance(each, nn.Module) for each in models):
        raise TypeError(f"model must be a torch.nn.Module or a list of them, got {model!r}")
    if len(set(map(id, models))) < len(models):
        raise ValueError("one model is in the list twice; copy.deepcopy makes another")
    if not any(p.requires_grad for p in models[0].parameters()):
        raise ValueError("the model has no parameters to train: none, or none that requires grad")
    if any(p.is_meta for p in models[0].parameters()):
        raise ValueError("the model is on the meta device, without values; see model.to_empty")
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


def _difference(first: nn.Module, other: nn.Module) -> str:
    """In what two models differ, in words; empty if in nothing that is known."""
    for what, description in (("module", _module), ("parameter", _tensor), ("buffer", _tensor)):
        mine, its = ({name: description(value) for name, value in _named(each, what)} for each in (first, other))
        for name in [*mine, *its]:
            if mine.get(name) != its.get(name):
                return f"{what} {name or 'itself'} is {its.get(name)}, not {mine.get(name)}"
    return ""


def _named(model: nn.Module, what: str) -> Any:
    return getattr(model, {"module": "named_modules"}.get(what, f"named_{what}s"))()


def _module(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _tensor(tensor: Tensor) -> str:
    frozen = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else ", frozen"
    return f"{tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}{frozen}"
