"""Sums over second moments: values and derivatives, of small matrices and by the function for large ones."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mnvi.linalg import second_moments
from tests.laws import assert_close

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("small", [0, 2**15])
def test_the_sum_of_squares_and_its_derivatives(small, monkeypatch):
    monkeypatch.setattr(second_moments, "SMALL", small)
    matrix = torch.randn(4, 6).mT.requires_grad_()  # not contiguous
    assert_close(second_moments.sum_squares(matrix), torch.linalg.matrix_norm(matrix) ** 2)
    assert gradcheck(second_moments.sum_squares, (matrix,))
    assert gradgradcheck(second_moments.sum_squares, (matrix,))
    assert_close(torch.func.grad(second_moments.sum_squares)(matrix.detach()), 2 * matrix)
