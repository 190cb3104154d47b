"""The Lyapunov equation S L + L S = v for a symmetric positive definite S, and the square root of S.

S is given by its eigenvalues λ and in the basis of its eigenvectors, where it is diagonal but varies in all of its
entries. So nothing needs the derivatives of eigenvectors, which do not exist where eigenvalues coincide; those of what
is here exist, to any order. Source: Higham, 'Functions of Matrices' (2008), section 6.1,
doi:10.1137/1.9780898717778.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def lyapunov(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:
    """L_ij = v_ij / (λ_i + λ_j) for ``s`` and ``v`` of shape (..., n, n) in the basis of the eigenvectors."""
    return _Lyapunov.apply(s, v, eigenvalues)  # type: ignore[return-value]


def root(s: Tensor, eigenvalues: Tensor) -> Tensor:
    """diag(λ^½), S^½ in the basis of the eigenvectors; 0 where rounding has left λ < 0."""
    return _Root.apply(s, eigenvalues.clamp(min=0).sqrt())  # type: ignore[return-value]


class _Lyapunov(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, v: Tensor, eigenvalues: Tensor) -> Tensor:  # type: ignore[override]
        return v / (eigenvalues.unsqueeze(-1) + eigenvalues.unsqueeze(-2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        s, _, eigenvalues = inputs
        ctx.save_for_backward(s, eigenvalues, output)
        ctx.save_for_forward(s, eigenvalues, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        s, eigenvalues, solution = ctx.saved_tensors
        of_v = lyapunov(s, grad, eigenvalues)
        return -(of_v @ solution.mT + solution.mT @ of_v), of_v, None

    @staticmethod
    def jvp(ctx: Any, along_s: Tensor | None, along_v: Tensor | None, _: Any) -> Tensor:  # type: ignore[override]
        s, eigenvalues, solution = ctx.saved_tensors
        change = torch.zeros_like(solution) if along_v is None else along_v
        if along_s is not None:
            change = change - along_s @ solution - solution @ along_s
        return lyapunov(s, change, eigenvalues)


class _Root(Function):
    """From dR R + R dR = dS."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, roots: Tensor) -> Tensor:  # type: ignore[override]
        return torch.diag_embed(roots)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        roots, root = ctx.saved_tensors
        return lyapunov(root, grad, roots), None

    @staticmethod
    def jvp(ctx: Any, along: Tensor, _: Any) -> Tensor:  # type: ignore[override]
        roots, root = ctx.saved_tensors
        return lyapunov(root, along, roots)
