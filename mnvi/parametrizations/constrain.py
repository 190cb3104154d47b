"""Attaching a parametrization to the weight of a module."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .._checks import instance, one_of
from .._torch.autocast import full_precision
from .._torch.dtypes import convert_as_one
from ..linalg import orthonormal
from ..manifolds.base import TOLERANCE
from ._matrix_layout import MatrixLayout
from .base import Originals, Parametrization

STARTS = ("auto", "weight", "nearest", "draw")


def constrain(
    module: nn.Module,
    name: str,
    parametrization: Parametrization,
    *,
    start: str = "auto",
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Keep ``module.<name>`` on a manifold: from now on it is ``parametrization`` of unconstrained parameters.

    The weight may afterwards be assigned (``layer.weight = q``, a point of the manifold) but not edited in place.
    ``torch.nn.utils.parametrize.remove_parametrizations(module, name)`` takes the parametrization off.

    Args:
        module: any module, ``nn.Linear(64, 64)`` say; it is changed in place.
        name: of the parameter, ``"weight"`` say, a matrix or a batch of them; of a convolution, the kernel; of a
            Bayesian layer, the mean.
        parametrization: from :mod:`mnvi.parametrizations`, a new one for each weight.
        start: ``"auto"`` keeps a weight that the parametrization reaches and draws a start by its initialiser for any
            other (a new layer's, say), with a warning if that one is orthonormal; ``"weight"`` insists on keeping
            it; ``"nearest"`` begins at the nearest point of the manifold; ``"draw"`` always draws.
        generator: for the draw.

    Returns:
        ``module``.

    Raises:
        TypeError, ValueError: there is no such parameter or it is constrained already, the parametrization does not fit
            its shape, or is in use, or the weight cannot be kept. The module is then as it was.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", mnvi.parametrizations.CWY(reflections=16))
    """
    instance("parametrization", parametrization, Parametrization)
    one_of("start", start, STARTS)
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"{name!r} of {type(module).__name__} has a parametrization already")
    weight = getattr(module, name, None)
    if not isinstance(weight, nn.Parameter):
        raise ValueError(f"{type(module).__name__} has no parameter {name!r} of its own")
    if name == "weight" and getattr(module, "is_pruned", False):
        raise ValueError(f"the weight of this {type(module).__name__} is pruned: zeros would take it off the manifold")
    if weight.is_meta:
        raise ValueError(f"{name!r} of {type(module).__name__} is on the meta device; constrain it once it has numbers")
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f"a constrained weight needs at least two dimensions, none 0, got shape {tuple(weight.shape)}")
    layout = MatrixLayout(tuple(weight.shape), kernel=isinstance(module, _ConvNd))
    parametrization.attach(layout, weight, generator)
    try:
        with torch.no_grad(), full_precision(weight):
            originals = _first_originals(parametrization, layout.matrix(weight), start, generator)
        with parametrization.beginning_at(originals):
            parametrize.register_parametrization(module, name, parametrization)
        if weight.is_complex():
            convert_as_one(module)
    except BaseException:
        parametrization.detach()
        raise
    return module


def multiply(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """``x @ module.<name>.mT`` for a constrained weight, without its matrix where the parametrization saves that.

    Args:
        module, name: as given to :func:`constrain`.
        x: rows of shape (..., in).

    Returns:
        Rows of shape (..., out).

    Raises:
        ValueError: the weight is not constrained, or has further parametrizations, or ``x`` does not fit it.
    """
    if not parametrize.is_parametrized(module, name):
        raise ValueError(f"{name!r} of {type(module).__name__} is not constrained; use mnvi.constrain first")
    parametrization, originals = _attached(module, name)
    if len(module.parametrizations[name]) > 1:  # type: ignore[index]
        raise ValueError(f"{name!r} of {type(module).__name__} has further parametrizations after {parametrization}")
    return parametrization.multiply(x, *originals)


def factors(module: nn.Module, name: str) -> tuple[Tensor, ...]:
    """What to multiply by many times, as a recurrent layer does at every step: the weight W, mapped once here.

    Args:
        module: any module.
        name: of its weight, constrained or not.

    Returns:
        (W,); or thin (U, P), each of shape (L, n), where the parametrization is W = I − UᵀP with L < n reflections.

    Example:
        >>> layer = mnvi.constrain(nn.Linear(64, 64), "weight", CWY(reflections=16))
        >>> u, p = factors(layer, "weight")
        >>> torch.testing.assert_close(h - (h @ p.mT) @ u, h @ layer.weight.mT)
    """
    if parametrize.is_parametrized(module, name) and not parametrize._cache_enabled:
        chain: Any = module.parametrizations[name]  # type: ignore[index]
        if len(chain) == 1 and isinstance(chain[0], Parametrization):
            parametrization, originals = _attached(module, name)
            return parametrization.factors(*originals)
    return (getattr(module, name),)


def _attached(module: nn.Module, name: str) -> tuple[Parametrization, tuple[Tensor, ...]]:
    """The parametrization of a constrained weight, and its unconstrained tensors."""
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    parametrization = instance("parametrization", chain[0], Parametrization)
    originals = (
        (chain.original,) if chain.is_tensor else tuple(getattr(chain, f"original{i}") for i in range(chain.ntensors))
    )
    return parametrization, originals


def _first_originals(
    parametrization: Parametrization, matrix: Tensor, start: str, generator: torch.Generator | None
) -> Originals:
    """The unconstrained tensors to begin with, for the present ``matrix`` of the weight."""
    draw = partial(parametrization.draw, matrix.shape, generator=generator, dtype=matrix.dtype, device=matrix.device)
    if start == "draw":
        return draw()
    if start == "nearest":
        return parametrization.coordinates(parametrization.nearest(matrix))
    try:
        return parametrization.checked_coordinates(matrix)
    except ValueError as error:
        if start == "weight":
            others = "start='nearest' begins at the nearest point, if it is within reach, start='draw' anywhere"
            raise ValueError(f"{error}; {others}") from None
        if orthonormal.residual(matrix).max() <= TOLERANCE:
            warnings.warn(f"the weight is not kept, though its columns or rows are orthonormal: {error}", stacklevel=3)
        return draw()
