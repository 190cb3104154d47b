"""The small model, and its input, that tests of several files run on."""

import torch
from torch import nn

import mnvi
from mnvi import MNLinear
from mnvi.posteriors import MatrixNormal

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def mlp(**options):
    """Two Bayesian layers, from 4 numbers to 3, with dense factors if nothing else is said."""
    options = {"posterior": MatrixNormal(), **options}
    return mnvi.Sequential(MNLinear(4, 6, **options), nn.Tanh(), MNLinear(6, 3, **options))


def draws(model, x=X):
    """Whether two calls differ."""
    return not torch.equal(model(x), model(x))
