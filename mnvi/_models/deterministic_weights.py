"""The modules of a partly Bayesian model that have weights, but no posterior."""

from torch import nn
from torch.nn.parameter import is_lazy

from ..layers import BayesianLayer
from ..layers.norms import BayesianNorm

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def deterministic_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name → module of every module with a parameter of its own of two or more dimensions, outside Bayesian layers.

    Vectors (biases, scales) and the parameters of normalisation layers are no weights. A parametrized weight is its
    layer's. A shared module has its first name.
    """
    kinds = (BayesianLayer, BayesianNorm)
    bayesian = {part for layer in model.modules() if isinstance(layer, kinds) for part in layer.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if module not in bayesian and not isinstance(module, _NORMS) and _has_weights(module):
            owner = ("." + name).split(".parametrizations.")[0].removeprefix(".")
            found[owner] = model.get_submodule(owner)
    return found


def described(modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """``"name (Kind)"`` of each module."""
    return tuple(f"{name or 'the model'} ({type(module).__name__})" for name, module in modules.items())


def _has_weights(module: nn.Module) -> bool:
    return any(p is not None and (is_lazy(p) or p.dim() > 1) for p in module._parameters.values())
