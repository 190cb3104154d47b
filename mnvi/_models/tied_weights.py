"""Tied weights: one parameter in two places of a model, which must have one posterior."""

from collections.abc import Iterable

from torch import nn


def refuse_tied(model: nn.Module, layers: Iterable[nn.Module], what: str) -> None:
    """Raise ValueError, naming every place, if the weight of one of ``layers`` is also another parameter of ``model``.

    A module that occurs several times is one place.
    """
    places: dict[nn.Parameter, dict[str, str]] = {}  # parameter -> its names, each with its module's
    for name, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, {})[f"{name}.{own}" if name else own] = name
    for layer in layers:
        tied = places.get(layer._parameters.get("weight"), {})  # type: ignore[arg-type]
        if len(tied) > 1:
            raise ValueError(
                f"{' and '.join(map(repr, tied))} are one parameter, and {what}; leave it alone with "
                f"skip={[module for module in tied.values() if module]}, give each a parameter of its own, or use one "
                "layer in all places"
            )


def refuse_shared_means(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise ValueError, naming both, if two of the Bayesian ``layers`` have the same parameter as their mean."""
    seen: dict[nn.Parameter, str] = {}
    for name, layer in layers:
        mean = layer._parameters.get("weight")
        if mean is None:
            continue
        if mean in seen:
            raise ValueError(
                f"layers {seen[mean]!r} and {name!r} have one parameter as their mean, but two posteriors, and the KL "
                "would count it twice; use one layer in both places"
            )
        seen[mean] = name
