"""Matrix-normal distributions as `torch.distributions`.

A random matrix W of shape (n, p) is W = M + A E Bᵀ with E iid standard normal, A (n, n) and B (p, p) lower-triangular
with a positive diagonal. With the row covariance U = A Aᵀ and the column covariance V = B Bᵀ, the row-major
`W.flatten()` is N(M.flatten(), U ⊗ V).

`torch.distributions.kl_divergence` knows every pair of normal distributions of one event in which one is of a class
here: the docstring of `divergences` lists them.
"""

from . import divergences
from .corrected_matrix_normal import CorrectedMatrixNormal
from .matrix_normal import MatrixNormal
from .matrix_normal_plus_diagonal import MatrixNormalPlusDiagonal
from .scaled_matrix_normal import ScaledMatrixNormal

__all__ = ["CorrectedMatrixNormal", "MatrixNormal", "MatrixNormalPlusDiagonal", "ScaledMatrixNormal", "divergences"]
