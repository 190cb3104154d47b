"""The numbers that torch's decompositions take, and conversions of modules that hold real and complex ones.

Torch's ``to(torch.complex128)`` would make real numbers complex, and its ``double()`` would convert these alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

Device = torch.device | str | None  # where new tensors go; None is torch's default device
Convert = Callable[[Tensor], Tensor]


def convert_as_one(module: nn.Module) -> None:
    """Have a module with a constrained complex weight convert by :func:`same_kind`, weight, bias and all."""
    kind: Any = type(module)  # which parametrize made, with the property of the weight, for this module alone

    def _apply(self: nn.Module, fn: Convert, recurse: bool = True) -> nn.Module:
        return super(kind, self)._apply(same_kind(fn), recurse)

    kind._apply = _apply


def same_kind(fn: Convert) -> Convert:
    """A conversion like ``fn``, by which real numbers stay real and complex ones complex, all in one precision.

    That is single precision after ``float()`` and double after ``double()``, ``to(torch.float64)`` and
    ``to(torch.complex128)``. There is no half precision of complex numbers here, and ``half()`` changes nothing.
    """

    def convert(t: Tensor) -> Tensor:
        if not (t.is_floating_point() or t.is_complex()):
            return fn(t)
        precision = fn(torch.empty(0, dtype=t.dtype.to_real(), device=t.device)).dtype.to_real()
        parts = fn(torch.view_as_real(t) if t.is_complex() else t)
        parts = (parts.real if parts.is_complex() else parts).to(precision if precision in REAL else t.dtype.to_real())
        return torch.view_as_complex(parts.contiguous()) if t.is_complex() else parts

    return convert
