"""Checks that the optimisers share; each raises before anything is changed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def check_gradients(params: Sequence[Tensor], name: Callable[[Tensor], str], advice: str = "") -> None:
    """Raise ValueError for a sparse, NaN or infinite gradient, with the ``name`` of its parameter; then ``advice``.

    Parameters without a gradient are passed over. One host synchronisation where all gradients are finite.
    """
    grads = {p: p.grad for p in params if p.grad is not None}
    for p, grad in grads.items():
        if grad.layout != torch.strided:
            raise ValueError(f"the gradient of {name(p)} is sparse; it must be dense")
    culprit = first_non_finite(list(grads.values()))
    if culprit is not None:
        raise ValueError(f"the gradient of {name(list(grads)[culprit])} is not finite{advice}")


def first_non_finite(parts: list[Tensor]) -> int | None:
    """The index of the first tensor with a NaN or an infinity; one host synchronisation where all are finite."""
    if not parts or get_total_norm(parts).isfinite():
        return None
    # the norm of finite numbers can overflow, so each tensor is looked at
    return next((i for i, part in enumerate(parts) if not part.isfinite().all()), None)
