"""The Riemannian metrics of symmetric positive definite matrices, one class each, in the order of the protocol.

x, y are symmetric positive definite and u, v symmetric, all of shape (..., n, n). ``retract`` is each metric's
exponential as long as that stays well inside the cone; steps so long that it would leave it, or overflow, are bent so
that the result is definite (see :mod:`mnvi.linalg.definite`).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..linalg import log_derivative, spectral
from ..linalg.definite import definite, one_plus, reach, replace, shrinkage
from ..linalg.elementary import real_inner, sym
from ..linalg.lyapunov import lyapunov, root
from ..linalg.polar import polar_factor
from ..linalg.solve import solve_triangular


class Metric(ABC):
    """A metric, as :class:`mnvi.manifolds.SPD` needs it; see :class:`mnvi.manifolds.Manifold` for the laws."""

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

    With x = C Cᵀ and the whitened S = C⁻¹vC⁻ᵀ the geodesic is C Exp(S) Cᵀ. Sources: Pennec, Fillard & Ayache (2006),
    doi:10.1007/s11263-005-3222-z; Bhatia, 'Positive Definite Matrices' (2007), chapter 6.
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
        c, p, s, eigenvalues = self._relative(x, y)
        half = c @ p @ root(s, eigenvalues) @ p.mT
        return half @ _whiten(c, v) @ half.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        c = torch.linalg.cholesky(x)
        return c @ spectral.apply(spectral.exp, _whiten(c, v)) @ c.mT

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        c, p, s, eigenvalues = self._relative(x, y)
        return c @ p @ log_derivative.log(s, eigenvalues) @ p.mT @ c.mT

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        c, d = torch.linalg.cholesky(x), torch.linalg.cholesky(y)
        sigma = torch.linalg.svdvals(solve_triangular(c, d, upper=False))
        return 2 * torch.linalg.vector_norm(sigma.log(), dim=-1)

    def _relative(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C, and of S = C⁻¹yC⁻ᵀ the eigenvectors P as a constant, PᵀSP and its diagonal, the eigenvalues.

        From the singular values of C⁻¹D, y = D Dᵀ, so that twice the digits of a small eigenvalue hold.
        """
        c, d = torch.linalg.cholesky(x), torch.linalg.cholesky(y)
        w = solve_triangular(c, d, upper=False)
        p, sigma, _ = torch.linalg.svd(w.detach())
        w = p.mT @ w
        return c, p, w @ w.mT, sigma.square()


class LogEuclidean(Metric):
    """⟨u, v⟩ = ⟨D log_x[u], D log_x[v]⟩: the flat metric that the matrix logarithm carries over; complete.

    The geodesic is Exp(log x + D log_x[v]). Source: Arsigny, Fillard, Pennec & Ayache (2007),
    doi:10.1137/050637996.
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        s, q, eigenvalues = _eigenbasis(x)
        return real_inner(*(log_derivative.along(s, q.mT @ each @ q, eigenvalues) for each in (u, v)))

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        """(D log_x)⁻² [g], as ⟨r, v⟩ = ⟨(D log_x)² r, v⟩ must be ⟨g, v⟩."""
        s, q, eigenvalues = _eigenbasis(x)
        half = log_derivative.inverse_along(s, q.mT @ g @ q, eigenvalues)
        return q @ log_derivative.inverse_along(s, half, eigenvalues) @ q.mT

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The exponential, with the eigenvalues of D log_x[v] kept within ± log ``reach``."""
        logs, move = self._log_along(x, v)
        if (move.abs().sum(-1) > _log_reach(x)).any():  # no smaller than the largest eigenvalue
            move = spectral.apply(_limited, move)
        return spectral.apply(spectral.exp, logs + move)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel: (D log_y)⁻¹ D log_x [v]."""
        s, q, eigenvalues = _eigenbasis(y)
        move = self._log_along(x, v)[1]
        return q @ log_derivative.inverse_along(s, q.mT @ move @ q, eigenvalues) @ q.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        logs, move = self._log_along(x, v)
        return spectral.apply(spectral.exp, logs + move)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        s, q, eigenvalues = _eigenbasis(x)
        move = q.mT @ spectral.apply(spectral.log, y) @ q - log_derivative.log(s, eigenvalues)
        return q @ log_derivative.inverse_along(s, move, eigenvalues) @ q.mT

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(spectral.apply(spectral.log, x) - spectral.apply(spectral.log, y))

    def _log_along(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """log x and D log_x[v]."""
        s, q, eigenvalues = _eigenbasis(x)
        logs, move = log_derivative.log(s, eigenvalues), log_derivative.along(s, q.mT @ v @ q, eigenvalues)
        return q @ logs @ q.mT, q @ move @ q.mT


class BuresWasserstein(Metric):
    """⟨u, v⟩ = ½ tr(L_x[u] v) with L = L_x[u] the solution of L x + x L = u.

    The distance is the 2-Wasserstein distance of the Gaussians N(0, x) and N(0, y). The geodesic is
    (I + L_x[v]) x (I + L_x[v]), only while I + L_x[v] is positive definite: the manifold is not complete. From
    ½ tr(L_x[r] v) = tr(g v), the Riemannian gradient is r = 2 (g x + x g).
    Sources: Malagò, Montrucchio & Pistone (2018), arXiv:1801.09269; Bhatia, Jain & Lim (2019), arXiv:1712.01504.
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        _, q, move = self._lyapunov(x, u)
        return real_inner(move, q.mT @ v @ q) / 2

    def rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        return 4 * sym(g @ x)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The exponential where I + L_x[v] ≥ ½, eigenvalues below are bent; cut to a length of ``reach``^½ ‖x^½‖."""
        roots, q, move = self._lyapunov(x, v)
        move = move * shrinkage(move @ roots, reach(x.dtype) ** 0.5 * roots[..., -1:, -1:])
        half = q @ (one_plus(move) @ roots)
        return half @ half.mT

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        roots, q, move = self._lyapunov(x, v)
        half = q @ (roots + move @ roots)
        return half @ half.mT

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        c, aligned = self._align(x, y)
        return 2 * sym((aligned - c) @ c.mT)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        c, aligned = self._align(x, y)
        return torch.linalg.matrix_norm(aligned - c)

    def _lyapunov(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Λ^½ in ascending order and Q of x = Q Λ Qᵀ, and Qᵀ L_x[v] Q.

        (Qᵀ L_x[v] Q) Λ^½ has ‖v‖'s length and a small rounding error, however nearly singular x is; L_x[v] has not.
        """
        s, q, eigenvalues = _eigenbasis(x)
        return root(s, eigenvalues), q, lyapunov(s, q.mT @ v @ q, eigenvalues)

    def _align(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factors C of x, and D of y times the orthogonal O that brings D O nearest to C.

        D O is T C, T the optimal transport map from N(0, x) to N(0, y), and nothing is inverted.
        """
        c, d = torch.linalg.cholesky(x), torch.linalg.cholesky(y)
        return c, d @ polar_factor(d.mT @ c)


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


def _eigenbasis(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Qᵀ x Q, Q and the eigenvalues of x = Q Λ Qᵀ in ascending order, the last two as constants.

    Q may be constant in whatever does not depend on the basis, and has no derivative at equal eigenvalues.
    """
    eigenvalues, q = torch.linalg.eigh(x.detach())
    return q.mT @ x @ q, q, eigenvalues


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
