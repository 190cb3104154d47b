"""Which parameters are logarithms of scales is said by their owner, and read by the parameter groups."""

import math

import torch
from torch import nn

import mnvi
from mnvi import posteriors
from mnvi.covariance import Diagonal
from mnvi.covariance.diagonal import DiagonalFactor
from tests.cases import FACTORS, cases
from tests.laws import assert_close, build

HOLDERS = FACTORS | {"posterior": posteriors.Diagonal()}


@cases("description", {name: each for name, each in HOLDERS.items() if name != "identity"})
def test_log_scales_are_logarithms(description):
    """Adding log 2 to all of them and doubling all else doubles every factor that has parameters of its own."""
    module = build(description, (4, 6) if isinstance(description, posteriors.Diagonal) else 6).double()
    owners = [m for m in module.modules() if list(m.parameters(recurse=False))]
    before = module.variance().detach()
    with torch.no_grad():
        for owner in owners:
            own = dict(owner.named_parameters(recurse=False))
            assert {*owner.log_scales} <= {*own}
            for name, parameter in own.items():
                parameter.add_(math.log(2)) if name in owner.log_scales else parameter.mul_(2)
    assert_close(module.variance(), 4 ** len(owners) * before)


def test_a_parameter_that_is_not_listed_is_an_off_diagonal_whatever_its_name():
    class Other(DiagonalFactor):
        def __init__(self, size):
            super().__init__(size)
            self.log_kernel_distance = nn.Parameter(torch.zeros(()))

    layer = mnvi.MNLinear(3, 2, posterior=posteriors.MatrixNormal(row=Diagonal()))
    layer.posterior.row = Other(2)
    groups = {group["name"]: group["params"] for group in mnvi.parameter_groups(layer)}
    assert any(p is layer.posterior.row.log_kernel_distance for p in groups["off_diagonals"])
    assert any(p is layer.posterior.row.log_diagonal for p in groups["log_diagonals"])
