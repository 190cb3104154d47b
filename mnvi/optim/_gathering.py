"""Several modules as one: a model and what trains beside it, such as a likelihood or a noise of one's own."""

from typing import Any

from torch import nn

from .._checks import instance


class FreeParameters(nn.Module):
    """Parameters that belong to no module."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        for i, parameter in enumerate(parameters):
            self.register_parameter(str(i), parameter)


def gathered(model: Any) -> nn.Module:
    """One module of a module, or of a list or tuple of modules and single parameters, at least one of them a module.

    Raises:
        TypeError: something else, such as a list of nothing but parameters.
    """
    if not isinstance(model, (list, tuple)):
        return instance("model", model, nn.Module)
    modules = [each for each in model if isinstance(each, nn.Module)]
    free = [each for each in model if isinstance(each, nn.Parameter)]
    if not modules or len(modules) + len(free) < len(model):
        kinds = ", ".join(type(each).__name__ for each in model[:5]) or "nothing"
        raise TypeError(
            f"model must be a module, or a list of modules and parameters such as [model, likelihood], got {kinds}"
        )
    owned = {parameter for module in modules for parameter in module.parameters()}
    return nn.ModuleList([*modules, FreeParameters([each for each in free if each not in owned])])
