"""The modules that stay deterministic are named by a conversion and by a report."""

import warnings

import pytest
import torch
from torch import nn

import mnvi
from mnvi import to_bayesian

pytestmark = pytest.mark.usefixtures("float64")


class Positions(nn.Module):
    """A module of one's own with a matrix and a vector."""

    def __init__(self):
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.ones(4))


def assorted():
    return nn.ModuleDict(
        {
            "fc": nn.Linear(4, 4),
            "embedding": nn.Embedding(5, 4),
            "rnn": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "cell": nn.GRUCell(4, 4),
            "positions": Positions(),
            "norm": nn.ModuleList([nn.LayerNorm((2, 4)), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "lazy": nn.LazyLinear(3),
            "prelu": nn.PReLU(4),
        }
    )


LEFT = {
    "embedding": "Embedding",
    "rnn": "LSTM",
    "attention": "MultiheadAttention",
    "attention.out_proj": "NonDynamicallyQuantizableLinear",
    "cell": "GRUCell",
    "positions": "Positions",
    "normed": "ParametrizedLinear",
    "lazy": "LazyLinear",
}


def test_what_stays_deterministic_is_named_in_one_warning_and_in_the_report():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = to_bayesian(assorted())
    expected = [f"{name} ({kind})" for name, kind in LEFT.items()]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message).startswith(f"no posterior for {', '.join(expected)}:")
    del model["lazy"], model["normed"]
    report = mnvi.sparsity.report(model)
    assert list(report.deterministic) == expected[:-2]
    assert report.to_dict()["deterministic"] == expected[:-2]
    assert str(report).splitlines()[-1] == f"deterministic: {', '.join(expected[:-2])}"


def test_what_skip_names_and_only_leaves_out_is_meant():
    to_bayesian(assorted(), skip=[name for name in LEFT if "." not in name])
    to_bayesian(assorted(), only=["fc"])
    with pytest.warns(UserWarning, match=r"no posterior for 1.1 \(Embedding\):"):
        to_bayesian(nn.Sequential(nn.Embedding(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4))), only="1")


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))
    with pytest.raises(UserWarning, match="Embedding"):
        to_bayesian(model)
    assert type(model[1]) is nn.Linear
    assert not model._forward_hooks


def test_the_report_of_a_plain_model_names_nothing():
    assert mnvi.sparsity.report(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4))).deterministic == ()
