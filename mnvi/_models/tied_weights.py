"""Tied weights: one parameter in two places of a model, which must have one posterior."""

from collections.abc import Iterable

from torch import nn


def refuse_tied(model: nn.Module, layers: Iterable[nn.Module], what: str, own: tuple[str, ...] = ("weight",)) -> None:
    """Raise ValueError, naming every place, if the weight of one of ``layers`` is also another parameter of ``model``.

    Or another parameter of theirs that ``own`` names.

    A module that occurs several times is one place.
    """
    places: dict[nn.Parameter, dict[str, str]] = {}  # parameter -> its names, each with its module's
    for name, module in model.named_modules():
        for part, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, {})[f"{name}.{part}" if name else part] = name
    for parameter in (layer._parameters.get(each) for layer in layers for each in own):
        tied = places.get(parameter, {})  # type: ignore[arg-type]
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
