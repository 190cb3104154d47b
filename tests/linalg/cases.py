"""The table of the matrix functions: what each is called with, and what it is by numpy and scipy, one matrix at a time.

A new function of ``mnvi.linalg`` is one row of ``CASES``; every law of test_linalg then runs on it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

from mnvi.linalg import compact_wy, contraction, definite, log_derivative, lyapunov, orthonormal, reflections, spectral
from mnvi.linalg.cayley import times_cayley
from mnvi.linalg.elementary import skew, sym
from mnvi.linalg.exponential import exponential, times_exponential
from mnvi.linalg.logarithm import logarithm
from mnvi.linalg.polar import corrected, polar_factor
from mnvi.linalg.rotation_mesh import turn_layers, turns
from mnvi.linalg.solve import inverse, slogdet, solve
from mnvi.manifolds.retractions import RETRACTIONS
from mnvi.manifolds.retractions.exp import geodesic

REAL = (torch.float32, torch.float64)
FIELDS = (*REAL, torch.complex64, torch.complex128)


class Case(NamedTuple):
    """A function, its arguments for a batch of matrices of n rows, and its oracle for numpy arrays of one matrix."""

    function: Callable
    arguments: Callable  # (batch, n, dtype) → tuple of tensors
    oracle: Callable
    dtypes: tuple = FIELDS
    orders: int = 2  # of derivatives
    largest: int = 257  # n with which it takes no longer than other tests


def normal(*shape, dtype):
    return torch.randn(*shape, dtype=dtype)


def square(*batch, n, dtype):
    """Matrices with a condition number of about 3."""
    return normal(*batch, n, n, dtype=dtype) + 2 * n**0.5 * torch.eye(n, dtype=dtype)


def skewed(*batch, n, dtype, size=2.0):
    """Skew-Hermitian matrices with eigenvalues within about ±size·i, and what they are the skew part of."""
    return size / (2 * n) ** 0.5 * normal(*batch, n, n, dtype=dtype)


def thin(n):
    return max(1, n // 2)


def step(batch, n, dtype, size=0.5):
    """An orthonormal x with a tangent vector whose columns have about the length ``size``."""
    x = orthonormal.random(*batch, n, thin(n), dtype=dtype)
    return x, orthonormal.tangent(x, size / n**0.5 * normal(*x.shape, dtype=dtype))


def on_point(name):
    """The retraction of this name; only the exponential depends on the metric."""
    return functools.partial(RETRACTIONS[name].retract, metric="canonical")


def on_skew(function):
    return lambda a, *others: function(skew(a), *others)


def dense_reflections(v):
    """H(v₁)···H(v_L), from dense matrices."""
    each = [np.eye(v.shape[-1]) - 2 * np.outer(u, u) / (u @ u) for u in v]
    return functools.reduce(np.matmul, each)


def dense_layers(theta, n, phi=None):
    """F₁⋯F_L of layers of turns of neighbours; the angles follow each other layer by layer."""
    phi, product, layer = np.zeros_like(theta) if phi is None else phi, np.eye(n), 0
    while len(theta):
        count = (n - layer % 2) // 2
        blocks = [
            np.array([[np.exp(1j * p) * np.cos(t), -np.sin(t)], [np.exp(1j * p) * np.sin(t), np.cos(t)]])
            for t, p in zip(theta[:count], phi[:count], strict=True)
        ]
        before, after = np.eye(layer % 2), np.eye(n - layer % 2 - 2 * count)
        product = product @ scipy.linalg.block_diag(before, *blocks, after)
        theta, phi, layer = theta[count:], phi[count:], layer + 1
    return product


def layer_sizes(n, layers=3):
    return [(n - layer % 2) // 2 for layer in range(layers)]


def turned_flat(x, theta):
    """Rows of x (..., n, k) turned by layers of 2·⌊n/2⌋ … angles theta."""
    return turn_layers(x, turns(theta), layer_sizes(x.shape[-2]))


def turned_with_phases(x, theta, phi):
    return turn_layers(x, turns(theta, phi), layer_sizes(x.shape[-2]))


def mesh(batch, n, dtype):
    angles = 3 * torch.randn(2, *batch, sum(layer_sizes(n)), dtype=dtype).real
    return normal(*batch, n, 2, dtype=dtype), *angles


def flipped_polar(y):
    """The nearest rotation: the SVD with the smallest direction turned round where the determinant is negative."""
    u, _, vh = np.linalg.svd(y)
    u[:, -1] *= np.sign(scipy.linalg.det(u @ vh))
    return u @ vh


def positive_qr(x, v):
    q, r = np.linalg.qr(x + v)
    d = np.diagonal(r)
    return q * (d / abs(d))


def generator(x, v, beta=0.5):
    a = x.conj().T @ v
    w = v - x @ a
    return 2 * beta * x @ a @ x.conj().T + w @ x.conj().T - x @ w.conj().T


def dense_cayley(a):
    eye = np.eye(len(a))
    return scipy.linalg.solve(eye - a / 2, eye + a / 2)


def dense_retraction(x, v):
    p = np.eye(len(x)) - x @ x.conj().T / 2
    w = p @ v @ x.conj().T - x @ v.conj().T @ p
    return dense_cayley(w) @ x


def dense_geodesic(x, v, beta):
    along = scipy.linalg.expm((1 - 2 * beta) * x.conj().T @ v)
    return scipy.linalg.expm(generator(x, v, beta)) @ x @ along


def of_eigenvalues(function):
    """A function of symmetric matrices by the Schur form, of ½(x + xᵀ)."""
    vectorized = np.vectorize(lambda z: function(np.real(z)), otypes=[complex])
    return lambda x: scipy.linalg.funm((x + x.T) / 2, vectorized, disp=False)[0].real


def bent(x):
    return 1 + x if x >= -0.5 else -1 / (4 * x)


def log_determinant(a):
    determinant = scipy.linalg.det(a / 8)  # of a size that no n here overflows
    return determinant / abs(determinant), np.log(abs(determinant)) + len(a) * np.log(8)


def np_skew(a):
    return (a - a.conj().T) / 2


def contracted(factor, s):
    factor, s = np.tril(factor), (s + s.T) / 2
    middle = np.linalg.inv(np.eye(len(s)) + s + s @ s / 2)
    return np.linalg.cholesky(factor @ middle @ factor.T)


def spectral_case(function, oracle, *, shift=0.0, **options):
    return Case(
        lambda x: spectral.apply(function, sym(x)),
        lambda batch, n, dtype: (normal(*batch, n, n, dtype=dtype) / n**0.5 + shift * torch.eye(n, dtype=dtype),),
        of_eigenvalues(oracle),
        REAL,
        1,
    )


def bounded(eigenvalues):
    low, high = torch.tensor([[-0.3], [0.4]], dtype=eigenvalues.dtype)
    return spectral.clamp(eigenvalues, low, high)


def in_eigenbasis(function, oracle, orders=2):
    """A function of a positive definite S and a symmetric v that takes both in the basis of the eigenvectors of S."""

    def whole(a, b):
        s, v = sym(a @ a.mT) / a.shape[-1] + torch.eye(a.shape[-1], dtype=a.dtype), sym(b)
        with torch.no_grad():
            values, q = torch.linalg.eigh(s)
        return q @ function(q.mT @ s @ q, q.mT @ v @ q, values) @ q.mT

    def of_numpy(a, b):
        return oracle((a @ a.T) / len(a) + np.eye(len(a)), (b + b.T) / 2)

    def arguments(batch, n, dtype):
        return normal(*batch, n, n, dtype=dtype), normal(*batch, n, n, dtype=dtype)

    return Case(whole, arguments, of_numpy, REAL, orders)


def derivative_of_logarithm(s, v):
    """D log_S[v], the corner of the logarithm of [[S, v], [0, S]] (Higham, 2008, theorem 3.6)."""
    n = len(s)
    return scipy.linalg.logm(np.block([[s, v], [np.zeros_like(s), s]]))[:n, n:]


CASES = {
    "solve": Case(
        solve,
        lambda batch, n, dtype: (square(*batch, n=n, dtype=dtype), normal(*batch, n, 4, dtype=dtype)),
        scipy.linalg.solve,
    ),
    "solve-from-the-right": Case(
        functools.partial(solve, left=False),
        lambda batch, n, dtype: (square(*batch, n=n, dtype=dtype), normal(*batch, 4, n, dtype=dtype)),
        lambda a, b: scipy.linalg.solve(a.T, b.T).T,
    ),
    "inverse": Case(inverse, lambda batch, n, dtype: (square(*batch, n=n, dtype=dtype),), scipy.linalg.inv),
    "slogdet": Case(slogdet, lambda batch, n, dtype: (square(*batch, n=n, dtype=dtype),), log_determinant),
    "exponential": Case(
        exponential,
        lambda batch, n, dtype: (normal(*batch, n, n, dtype=dtype) / n**0.5,),
        scipy.linalg.expm,
    ),
    "exponential-of-skew": Case(
        on_skew(exponential),
        lambda batch, n, dtype: (skewed(*batch, n=n, dtype=dtype),),
        lambda a: scipy.linalg.expm(np_skew(a)),
    ),
    "times-exponential": Case(
        lambda x, a: times_exponential(x, skew(a)),
        lambda batch, n, dtype: (normal(*batch, 2, n, dtype=dtype), skewed(*batch, n=n, dtype=dtype)),
        lambda x, a: x @ scipy.linalg.expm(np_skew(a)),
    ),
    "logarithm": Case(
        on_skew(lambda a: logarithm(exponential(a))),
        lambda batch, n, dtype: (skewed(*batch, n=n, dtype=dtype),),
        lambda a: scipy.linalg.logm(scipy.linalg.expm(np_skew(a))),
        largest=150,  # it is 24 systems at once
    ),
    "polar-factor": Case(
        polar_factor,
        lambda batch, n, dtype: (normal(*batch, n, thin(n), dtype=dtype),),
        lambda y: scipy.linalg.polar(y)[0],
    ),
    "polar-factor-of-near": Case(
        polar_factor,
        lambda batch, n, dtype: (square(*batch, n=n, dtype=dtype),),
        lambda y: scipy.linalg.polar(y)[0],
    ),
    "polar-factor-of-determinant-1": Case(
        lambda y: polar_factor(y, torch.ones(y.shape[:-2], dtype=y.dtype)),
        lambda batch, n, dtype: (
            orthonormal.random(*batch, n, n, dtype=dtype) * torch.linspace(0.5, 2, n, dtype=dtype),
        ),
        flipped_polar,
        REAL,
    ),
    "corrected": Case(
        lambda x: corrected(corrected(corrected(x))),
        lambda batch, n, dtype: (
            orthonormal.random(*batch, n, thin(n), dtype=dtype) + 1e-2 / n * normal(*batch, n, thin(n), dtype=dtype),
        ),
        lambda y: scipy.linalg.polar(y)[0],
    ),
    "times-cayley": Case(
        lambda x, a: times_cayley(x, skew(a)),
        lambda batch, n, dtype: (normal(*batch, 2, n, dtype=dtype), skewed(*batch, n=n, dtype=dtype)),
        lambda x, a: x @ dense_cayley(np_skew(a)),
    ),
    "qr": Case(on_point("qr"), step, positive_qr),
    "polar": Case(on_point("polar"), step, lambda x, v: scipy.linalg.polar(x + v)[0]),
    "cayley": Case(on_point("cayley"), step, dense_retraction),
    "canonical-geodesic": Case(geodesic, step, functools.partial(dense_geodesic, beta=0.5)),
    "euclidean-geodesic": Case(
        functools.partial(geodesic, beta=1.0), step, functools.partial(dense_geodesic, beta=1.0)
    ),
    "symmetric-exponential": spectral_case(spectral.exp, np.exp),
    "symmetric-logarithm": spectral_case(spectral.log, np.log, shift=3.0),
    "clamped-eigenvalues": spectral_case(bounded, lambda x: np.clip(x, -0.3, 0.4)),
    "bent-eigenvalues": spectral_case(spectral.bend, bent),
    "lyapunov": in_eigenbasis(lyapunov.lyapunov, scipy.linalg.solve_lyapunov),
    "square-root": in_eigenbasis(lambda s, v, w: lyapunov.root(s, w) + v, lambda s, v: scipy.linalg.sqrtm(s) + v),
    "definite-logarithm": in_eigenbasis(
        lambda s, v, w: log_derivative.log(s, w) + v, lambda s, v: scipy.linalg.logm(s) + v
    ),
    "derivative-of-logarithm": in_eigenbasis(log_derivative.along, derivative_of_logarithm, orders=1),
    "one-plus": Case(
        lambda x: definite.one_plus(sym(x)),
        lambda batch, n, dtype: (normal(*batch, n, n, dtype=dtype) / n**0.5,),
        of_eigenvalues(bent),
        REAL,
        1,
    ),
    "contraction": Case(
        lambda factor, s: contraction.contract(factor.tril(), sym(s)),
        lambda batch, n, dtype: (
            torch.eye(n, dtype=dtype) + normal(*batch, n, n, dtype=dtype) / (5 * n**0.5),
            normal(*batch, n, n, dtype=dtype) / (3 * n**0.5),
        ),
        contracted,
        REAL,
    ),
    "compact-wy": Case(
        lambda v: compact_wy.first_columns(reflections.unit_rows(v), v.shape[-1] - 1),
        lambda batch, n, dtype: (normal(*batch, n, n, dtype=dtype),),
        lambda v: dense_reflections(v)[:, :-1],
        REAL,
        1,
    ),
    "compact-wy-factor": Case(
        lambda v: -reflections.unit_rows(v).mT @ compact_wy.right_factor(reflections.unit_rows(v), thin(v.shape[-1])),
        lambda batch, n, dtype: (normal(*batch, thin(n), n, dtype=dtype),),
        lambda v: (dense_reflections(v) - np.eye(v.shape[-1]))[:, : thin(v.shape[-1])],
        REAL,
        1,
    ),
    "reflections": Case(
        lambda x, v: reflections.reflect(x, reflections.unit_rows(v)),
        lambda batch, n, dtype: (normal(*batch, 2, n, dtype=dtype), normal(*batch, 4, n, dtype=dtype)),
        lambda x, v: x @ dense_reflections(v),
        REAL,
        1,
    ),
    "turns": Case(
        turned_flat,
        lambda batch, n, dtype: mesh(batch, n, dtype)[:2],
        lambda x, theta: (dense_layers(theta, len(x)) @ x).real,
        REAL,
        1,
    ),
    "turns-with-phases": Case(
        turned_with_phases, mesh, lambda x, theta, phi: dense_layers(theta, len(x), phi) @ x, FIELDS[2:], 1
    ),
}
