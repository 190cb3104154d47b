"""Group automatic relevance determination: one precision for each row and one for each column."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._checks import positive_float
from .._torch.dtypes import Device
from .._torch.tracing import plain_operations
from ..covariance.base import Split
from ..posteriors import Posterior
from .base import Prior, PriorSpec


@dataclass(frozen=True, eq=False)
class GroupARD(PriorSpec):
    """W_ij ~ N(0, 1/(τ_i·γ_j)), with the best τ and γ, or learnt ones.

    KL = ½[Σ_ij τ_i·γ_j·S_ij − p·Σ log τ_i − n·Σ log γ_j − n·p − log|Cov|], S = M² + Var. The best τ, γ satisfy
    τ_i·Σ_j S_ij·γ_j = p and γ_j·Σ_i τ_i·S_ij = n: Sinkhorn's matrix scaling, a convex problem in (log τ, log γ). Each
    ``kl()`` makes two warm-started sweeps of these equations, kept in buffers, so repeated calls converge to the
    optimum; there the gradient for the posterior is exact with τ and γ held fixed (envelope theorem). Second
    derivatives hold them fixed too, and in ``torch.func`` transforms the buffers stay as they are.

    With ``degrees`` = ν each weight has a precision of its own beside those of its row and column:
    W_ij ~ N(0, 1/(τ_i·γ_j·α_ij)), α_ij ~ Gamma(ν/2, ν/2), which is Student's t of ν degrees of freedom and scale
    1/√(τ_i·γ_j). With the best q(α_ij), ½(ν+1)·log(1 + τ_i·γ_j·S_ij/ν) takes the place of ½·τ_i·γ_j·S_ij, up to a
    constant, and S_ij has the factor (ν+1)/(ν + τ_i·γ_j·S_ij) in the two equations. This KL is that of q(W) q(α), thus
    an upper bound of the one to Student's t. ν = ∞ is the prior without; ν → 0 tends to ``ARD``, up to a constant.

    Sources: Kropotov, Vetrov, Wolf & Hassner (2010), 'Variational relevance vector machine for tabular data' (JMLR W&CP
    13:79-94), the prior; Sinkhorn & Knopp (1967), doi:10.2140/pjm.1967.21.343, the scaling; Tipping (2001), JMLR
    1:211-244, section 5.1, Student's t as a mixture of precisions.

    Args:
        rows: one precision for each row (output unit).
        columns: one precision for each column of the weight matrix (input unit, or channel and kernel position).
        learn: make log τ and log γ parameters of the layer that a torch optimiser steps, as Rudnev & Kropotov (2019)
            do.
        degrees: ν > 0; ``None``: ∞.
        positions: of a convolution, whether each kernel position of an input channel is a column with a precision of
            its own; ``False``: all positions of a channel share one, as they are pruned together with it.
    """

    rows: bool = True
    columns: bool = True
    learn: bool = False
    degrees: float | None = None
    positions: bool = True

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "learn", "positions"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if not (self.rows or self.columns):
            raise ValueError("GroupARD needs rows=True, columns=True or both; Normal(None) fits one scale for a layer")
        if self.degrees is not None:
            positive_float("degrees", self.degrees)

    def build(
        self, shape: tuple[int, int], *, device: Device = None, dtype: torch.dtype | None = None
    ) -> "GroupARDPrior":
        return GroupARDPrior(shape, self, device=device, dtype=dtype)

    def build_for(
        self, shape: tuple[int, int], split: Split | None, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> "GroupARDPrior":
        share = 1 if self.positions or split is None else split[1]
        return GroupARDPrior(shape, self, share=share, device=device, dtype=dtype)


class GroupARDPrior(Prior):
    """``log_row_precision`` (n,) and ``log_column_precision`` (p/k,); the one that is switched off stays 0.

    k is ``share``, how many neighbouring columns have one precision together.
    """

    sweeps = 2

    def __init__(
        self,
        shape: tuple[int, int],
        options: GroupARD,
        *,
        share: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.share = share
        self.rows, self.columns, self.learn = options.rows, options.columns, options.learn
        self.degrees = options.degrees
        sizes = shape[0], shape[1] // share
        for name, size, used in zip(("row", "column"), sizes, (self.rows, self.columns), strict=True):
            value = torch.zeros(size, device=device, dtype=dtype)
            if options.learn and used:
                self.register_parameter(f"log_{name}_precision", nn.Parameter(value))
            else:
                self.register_buffer(f"log_{name}_precision", value)
        self.log_row_precision: Tensor
        self.log_column_precision: Tensor

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """τ = γ = 1."""
        self.log_row_precision.zero_()
        self.log_column_precision.zero_()

    def kl(self, mean: Tensor, posterior: Posterior) -> Tensor:
        if self.learn:
            log_row, log_column = self.log_row_precision, self.log_column_precision
        elif plain_operations():  # which may not change buffers
            log_row, log_column = self._swept(mean, posterior, self.sweeps)
        else:
            self.update(mean, posterior)
            # Clones: the buffers change in place at the next call, and this call's graph must not see it.
            log_row, log_column = self.log_row_precision.clone(), self.log_column_precision.clone()
        n, p = mean.shape
        log_column = self.of_columns(log_column)
        determinant = p * log_row.sum() + n * log_column.sum()
        return 0.5 * (self._misfit(mean, posterior, log_row, log_column) - determinant) - posterior.log_volume()

    def _misfit(self, mean: Tensor, posterior: Posterior, log_row: Tensor, log_column: Tensor) -> Tensor:
        """Σ τ_i·γ_j·S_ij − n·p, or what takes its place for Student's t."""
        row, column, size, v = log_row.exp(), log_column.exp(), mean.numel(), self.degrees
        if v is None:
            return row @ mean.square() @ column + posterior.scaled_variance(row, column) - size
        second_moment = mean.square() + posterior.variance()
        share = (row.unsqueeze(1) * second_moment * column / v).log1p().sum()
        return (v + 1) * share - size * (1 + 2 * _log_density_ratio(v))

    def of_columns(self, values: Tensor) -> Tensor:
        """What stands for columns that share a precision (p/k,), for every column (p,)."""
        return values if self.share == 1 else values.repeat_interleave(self.share)

    def update(self, mean: Tensor, posterior: Posterior, sweeps: int | None = None) -> None:
        """Alternate the two equations ``sweeps`` times (2 by default), from where the last call left off."""
        log_row, log_column = self._swept(mean, posterior, self.sweeps if sweeps is None else sweeps)
        with torch.no_grad():
            self.log_row_precision.copy_(log_row)
            self.log_column_precision.copy_(log_column)

    @torch.no_grad()
    def _swept(self, mean: Tensor, posterior: Posterior, sweeps: int) -> tuple[Tensor, Tensor]:
        """log τ and log γ after these sweeps, constants in every derivative.

        No precision exceeds 1/tiny, whose inverse is the smallest normal number: of weights that have vanished the sums
        may be smaller, and 0 where ``torch.set_flush_denormal`` is on.
        """
        tiny = torch.finfo(mean.dtype).tiny
        second_moment = (mean.square() + posterior.variance()).detach() + tiny
        log_row, log_column = self.log_row_precision, self.log_column_precision
        if self.degrees is None:  # the moments have the same weights in every sweep
            second_moment = self._shared(second_moment)
        n, p = len(log_row), len(log_column)
        for _ in range(sweeps):
            if self.columns:
                moments = self._weighted(second_moment, log_row, log_column)
                log_column = torch.log(n / (log_row.exp() @ moments).clamp_min(n * tiny))
            if self.rows:
                moments = self._weighted(second_moment, log_row, log_column)
                log_row = torch.log(p / (moments @ log_column.exp()).clamp_min(p * tiny))
        return log_row, log_column

    def _weighted(self, second_moment: Tensor, log_row: Tensor, log_column: Tensor) -> Tensor:
        """S, each entry times its expected α, shared."""
        v = self.degrees
        if v is None:
            return second_moment
        column = self.of_columns(log_column).exp()
        return self._shared(second_moment * (v + 1) / (v + log_row.exp().unsqueeze(1) * second_moment * column))

    def _shared(self, moments: Tensor) -> Tensor:
        """The means over columns that share a precision, (n, p/k)."""
        return moments if self.share == 1 else moments.unflatten(1, (-1, self.share)).mean(2)

    def extra_repr(self) -> str:
        text = f"rows={self.rows}, columns={self.columns}, learn={self.learn}, degrees={self.degrees}"
        return text if self.share == 1 else f"{text}, share={self.share}"


def _log_density_ratio(v: float) -> float:
    """log Γ((v+1)/2) − log Γ(v/2) − ½ log(v/2): a t density at 0 against the normal's; by its series if v is large."""
    if v > 1e4:
        return (1 / (6 * v) / v - 1) / (4 * v)
    return math.lgamma((v + 1) / 2) - math.lgamma(v / 2) + 0.5 * math.log(2 / v)
