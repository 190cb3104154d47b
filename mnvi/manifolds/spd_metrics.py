"""The Riemannian metrics of symmetric positive definite matrices, one class each, in the order of the protocol.

x, y are symmetric positive definite and u, v symmetric, all of shape (..., n, n). ``retract`` is each metric's
exponential as long as that stays well inside the cone; steps so long that it would leave it, or overflow, are bent so
that the result is definite (see :mod:`mnvi.manifolds.definite`).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..linalg import spectral
from ..linalg.definite import definite, one_plus, reach, replace, shrinkage
from ..linalg.elementary import real_inner, sym
from ..linalg.polar import polar_factor
from ..linalg.solve import solve_triangular


class Metric(ABC):
    """What :class:`mnvi.manifolds.SPD` needs of a metric; see :class:`mnvi.manifolds.Manifold` for the laws."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor: ...

    @abstractmethod
    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        """The Riemannian gradient from the symmetric part ``g`` of the Euclidean one."""

    @abstractmethod
    def retract(self, x: Tensor, v: Tensor) -> Tensor: ...

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor: ...

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def dist(self, x: Tensor, y: Tensor) -> Tensor: ...


class AffineInvariant(Metric):
    """⟨u, v⟩ = tr(x⁻¹u x⁻¹v), the same after x → a x aᵀ; complete, of non-positive curvature.

    With x = C Cᵀ and the whitened S = C⁻¹vC⁻ᵀ the geodesic is C Exp(S) Cᵀ. Source: Pennec, Fillard & Ayache (2006);
    Bhatia, 'Positive Definite Matrices' (2007), chapter 6.
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        c = torch.linalg.cholesky(x)
        return real_inner(_whiten(c, u), _whiten(c, v))

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        return x @ g @ x

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The exponential, with the eigenvalues of S kept within ± log ``reach``."""
        c = torch.linalg.cholesky(x)
        return c @ spectral.apply(_limited_exp, _whiten(c, v)) @ c.mT

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel: E v Eᵀ with E = (y x⁻¹)^½."""
        c, w = self._relative(x, y)
        root = spectral.apply_to_gram(spectral.sqrt, w)
        return c @ root @ _whiten(c, v) @ root @ c.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        c = torch.linalg.cholesky(x)
        return c @ spectral.apply(spectral.exp, _whiten(c, v)) @ c.mT

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        c, w = self._relative(x, y)
        return c @ spectral.apply_to_gram(spectral.log, w) @ c.mT

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        sigma = torch.linalg.svdvals(self._relative(x, y)[1])
        return 2 * torch.linalg.vector_norm(sigma.log(), dim=-1)

    def _relative(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """C, and W = C⁻¹D with y = D Dᵀ, whose W Wᵀ is C⁻¹ y C⁻ᵀ and whose singular values have twice its digits."""
        c, d = torch.linalg.cholesky(x), torch.linalg.cholesky(y)
        return c, solve_triangular(c, d, upper=False)


class LogEuclidean(Metric):
    """⟨u, v⟩ = ⟨D log_x[u], D log_x[v]⟩: the flat metric that the matrix logarithm carries over; complete.

    The geodesic is Exp(log x + D log_x[v]). Source: Arsigny, Fillard, Pennec & Ayache (2007).
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        _, q, k = self._log(x)
        return real_inner(k * (q.mT @ u @ q), k * (q.mT @ v @ q))

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        """(D log_x)⁻² [g], as ⟨r, v⟩ = ⟨(D log_x)² r, v⟩ must be ⟨g, v⟩."""
        _, q, k = self._log(x)
        return spectral.sandwich(q, k.square().reciprocal(), g)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The exponential, with the eigenvalues of D log_x[v] kept within ± log ``reach``."""
        logs, q, k = self._log(x)
        move = spectral.sandwich(q, k, v)
        if (move.abs().sum(-1) > _log_reach(x)).any():  # no smaller than the largest eigenvalue
            move = spectral.apply(_limited, move)
        return spectral.apply(spectral.exp, (q * logs.unsqueeze(-2)) @ q.mT + move)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel: (D log_y)⁻¹ D log_x [v]."""
        _, q, k = self._log(x)
        _, p, j = self._log(y)
        return spectral.sandwich(p, j.reciprocal(), spectral.sandwich(q, k, v))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        logs, q, k = self._log(x)
        return spectral.apply(spectral.exp, (q * logs.unsqueeze(-2)) @ q.mT + spectral.sandwich(q, k, v))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        logs, q, k = self._log(x)
        difference = spectral.apply(spectral.log, y) - (q * logs.unsqueeze(-2)) @ q.mT
        return spectral.sandwich(q, k.reciprocal(), difference)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(spectral.apply(spectral.log, x) - spectral.apply(spectral.log, y))

    def _log(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the eigenvalues in ascending order, the eigenvectors, and the divided differences."""
        eigenvalues, q = torch.linalg.eigh(x)
        logs, k = spectral.log(eigenvalues)
        return logs, q, k


class BuresWasserstein(Metric):
    """⟨u, v⟩ = ½ tr(L_x[u] v) with L = L_x[u] the solution of L x + x L = u.

    The distance is the 2-Wasserstein distance of the Gaussians N(0, x) and N(0, y). The geodesic is
    (I + L_x[v]) x (I + L_x[v]), only while I + L_x[v] is positive definite: the manifold is not complete. From
    ½ tr(L_x[r] v) = tr(g v), the Riemannian gradient is r = 2 (g x + x g).
    Source: Malagò, Montrucchio & Pistone (2018); Bhatia, Jain & Lim (2019).
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        _, q, move = self._lyapunov(x, u)
        return real_inner(move, q.mT @ v @ q) / 2

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        return 4 * sym(g @ x)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The exponential where I + L_x[v] ≥ ½, eigenvalues below are bent; cut to a length of ``reach``^½ ‖x^½‖."""
        roots, q, move = self._lyapunov(x, v)
        move = move * shrinkage(move * roots, reach(x.dtype) ** 0.5 * roots[..., -1:])
        half = q @ (one_plus(move) * roots)
        return half @ half.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        roots, q, move = self._lyapunov(x, v)
        half = q @ (roots.squeeze(-2).diag_embed() + move * roots)
        return half @ half.mT

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        c, d, o = self._align(x, y)
        return 2 * sym((d @ o - c) @ c.mT)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        c, d, o = self._align(x, y)
        # O minimises the distance, whose derivative therefore needs none of O's, which fails at equal singular values.
        return torch.linalg.matrix_norm(d @ o.detach() - c)

    def _lyapunov(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Λ^½ as a row (..., 1, n) in ascending order and Q of x = Q Λ Qᵀ, and Qᵀ L_x[v] Q.

        (Qᵀ L_x[v] Q) Λ^½ has ‖v‖'s length and a small rounding error, however nearly singular x is; L_x[v] has not.
        """
        eigenvalues, q = torch.linalg.eigh(x)
        move = (q.mT @ v @ q) / (eigenvalues.unsqueeze(-1) + eigenvalues.unsqueeze(-2))
        return eigenvalues.clamp(min=0).sqrt().unsqueeze(-2), q, move

    def _align(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cholesky factors C of x and D of y, and the orthogonal O that brings D O nearest to C.

        D O is T C, T the optimal transport map from N(0, x) to N(0, y), and nothing is inverted.
        """
        c, d = torch.linalg.cholesky(x), torch.linalg.cholesky(y)
        return c, d, polar_factor(c.mT @ d).mT


class Euclidean(Metric):
    """⟨u, v⟩ = tr(u v), that of all symmetric matrices; straight lines are geodesics until they leave the cone."""

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return real_inner(u, v)

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        return g

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """x + v where it is ≥ ½ x; beyond that C χ(S) Cᵀ with the eigenvalues of I + S = C⁻¹(x + v)C⁻ᵀ bent."""
        return replace(x + v, ~definite(x / 2 + v), _bent, x, v)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return y - x

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(x - y)


METRICS: dict[str, Metric] = {
    "affine-invariant": AffineInvariant(),
    "log-euclidean": LogEuclidean(),
    "bures-wasserstein": BuresWasserstein(),
    "euclidean": Euclidean(),
}


def _whiten(c: Tensor, u: Tensor) -> Tensor:
    """C⁻¹ u C⁻ᵀ for lower-triangular C."""
    half = solve_triangular(c, u, upper=False)
    return solve_triangular(c, half.mT, upper=False).mT


def _bent(x: Tensor, v: Tensor) -> Tensor:
    c = torch.linalg.cholesky(x)
    return c @ one_plus(_whiten(c, v)) @ c.mT


def _log_reach(x: Tensor) -> float:
    return math.log(reach(x.dtype))


def _limited(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    bound = eigenvalues.new_tensor([_log_reach(eigenvalues)])
    return spectral.clamp(eigenvalues, -bound, bound)


def _limited_exp(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    inside, k = _limited(eigenvalues)
    values, j = spectral.exp(inside)
    return values, j * k
