"""The base of the matrix-normal distributions: their arguments, their draws, and products with their factors."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .._torch.autocast import full_precision
from ..linalg.solve import solve_triangular


class KroneckerNormal(Distribution):
    """W = M + A E Bᵀ + independent noise (a subclass says which); every argument is a batch of matrices."""

    has_rsample = True
    support: ClassVar[constraints.Constraint] = constraints.independent(constraints.real, 2)
    loc: Tensor
    scale_tril_row: Tensor
    scale_tril_column: Tensor

    def __init__(self, validate_args: bool | None, *values: Tensor) -> None:
        arguments = dict(zip(self.arg_constraints, values, strict=True))
        batch_shape = _broadcast_batch_shape(**arguments)
        for name, value in arguments.items():
            setattr(self, name, value.expand((*batch_shape, -1, -1)))
        super().__init__(batch_shape, self.loc.shape[-2:], validate_args=validate_args)
        if self._validate_args:
            for name, value in arguments.items():
                if not value.isfinite().all():
                    raise ValueError(f"{name} must be finite, got {value}")

    mean = mode = property(lambda self: self.loc, doc="M, shape (..., n, p).")

    @property
    def variance(self) -> Tensor:
        """The marginal variances U_ii V_jj, shape (..., n, p)."""
        rows, columns = self.scale_tril_row.square().sum(-1), self.scale_tril_column.square().sum(-1)
        return rows.unsqueeze(-1) * columns.unsqueeze(-2)

    @property
    def row_covariance(self) -> Tensor:
        """U = A Aᵀ, shape (..., n, n)."""
        return product(self.scale_tril_row, self.scale_tril_row.mT)

    @property
    def column_covariance(self) -> Tensor:
        """V = B Bᵀ, shape (..., p, p)."""
        return product(self.scale_tril_column, self.scale_tril_column.mT)

    def rsample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """A differentiable draw M + A E Bᵀ, shape `sample_shape` + (..., n, p)."""
        noise = self._standard_normal(sample_shape, generator)
        return self.loc + product(self.scale_tril_row, noise, self.scale_tril_column.mT)

    def _standard_normal(self, sample_shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)

    def _expand_into(self, new, batch_shape):
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand((*batch_shape, -1, -1)))
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


def _broadcast_batch_shape(**arguments: Tensor) -> torch.Size:
    values = list(arguments.values())
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values):
        raise TypeError(f"expected floating-point tensors, got {[getattr(x, 'dtype', type(x)) for x in values]}")
    if len({(x.dtype, x.device) for x in values}) > 1:
        raise ValueError(f"expected one dtype and one device, got {[(x.dtype, str(x.device)) for x in values]}")
    shapes = {name: tuple(x.shape) for name, x in arguments.items()}
    n, p = shapes["loc"][-2:] if len(shapes["loc"]) > 1 else (0, 0)
    if n * p == 0:
        raise ValueError(f"loc must have shape (..., n, p) with n, p > 0, got {shapes['loc']}")
    factors = {"scale_tril_row": (n, n), "scale_tril_column": (p, p)}
    expected = {name: factors.get(name, (n, p)) for name in shapes}
    for name, shape in shapes.items():
        if shape[-2:] != expected[name]:
            raise ValueError(f"{name} must end in {expected[name]} for loc of shape {shapes['loc']}, got {shape}")
    try:
        return torch.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
    except RuntimeError as error:
        raise ValueError(f"the batch shapes must broadcast, got {shapes}") from error


def kronecker(a: Tensor, b: Tensor) -> Tensor:
    """a ⊗ b, shape (..., np, np), for a of shape (..., n, n) and b of shape (..., p, p)."""
    blocks = a[..., :, None, :, None] * b[..., None, :, None, :]  # (..., n, p, n, p)
    return blocks.flatten(-2).flatten(-3, -2)


def product(*matrices: Tensor) -> Tensor:
    """The matrix product in its factors' own precision, also under autocast."""
    with full_precision(matrices[0]):
        return functools.reduce(torch.matmul, matrices)


def triangular_solve(tril: Tensor, x: Tensor) -> Tensor:
    """L⁻¹ x for lower-triangular L."""
    if tril.dim() > 2:
        return solve_triangular(tril, x, upper=False)
    # Torch would copy a single factor for every matrix of the batch: set them side by side instead.
    columns = x.movedim(-2, 0)
    return solve_triangular(tril, columns.flatten(1), upper=False).view(columns.shape).movedim(0, -2)
