"""The exact bounds of families.py, against closed forms and against draws."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import mnvi
from examples.papers import families, row_posterior
from mnvi import posteriors, priors
from tests.cases import SOME_FAMILIES, cases
from tests.laws import assert_close, build, dense_covariance

pytestmark = pytest.mark.usefixtures("float64")
SETTINGS = families.Settings(points=50)


def test_with_a_known_prior_the_widest_family_has_the_evidence():
    x, y = families.problem(SETTINGS, 4)
    found = row_posterior.best_rows(x, y, SETTINGS.noise, priors.Normal(None), 300)
    # The scale that was fitted has the largest evidence: the fixed points are those of its derivative.
    scales = torch.linspace(0.05, 0.6, 400)
    covariance = x @ x.T
    noise = SETTINGS.noise**2 * torch.eye(len(x))
    evidence = [
        MultivariateNormal(torch.zeros(len(x)), s**2 * covariance + noise).log_prob(y.T).sum().item() for s in scales
    ]
    assert found == pytest.approx(-max(evidence), abs=1e-3)


@cases("family", SOME_FAMILIES)
def test_the_expected_misfit_is_that_of_the_dense_covariance(family):
    x, y = torch.randn(7, 6), torch.randn(7, 4)
    posterior, mean = build(family), torch.randn(4, 6)
    covariance = dense_covariance(posterior).view(4, 6, 4, 6)
    blocks = torch.stack([covariance[i, :, i] for i in range(4)])
    expected = (y - x @ mean.T).square().sum() + torch.einsum("ni,kij,nj->", x, blocks, x)
    assert_close(families.expected_misfit(posterior, x, y)(mean), expected)


def test_rows_are_a_family():
    posterior = row_posterior.Rows().build((2, 3))
    covariance = torch.randn(2, 3, 5)
    covariance = covariance @ covariance.mT
    posterior.set_covariance_(covariance)
    assert_close(posterior.variance(), covariance.diagonal(dim1=-2, dim2=-1))
    assert_close(posterior.log_volume(), 0.5 * torch.logdet(covariance).sum())
    draws = torch.stack([posterior.deviation(posterior.draw_noise()) for _ in range(4000)])
    found = torch.einsum("ski,skj->kij", draws, draws) / len(draws)
    assert (found - covariance).abs().max() < 5 * math.sqrt(2 / len(draws)) * covariance.abs().max()
    layer = mnvi.MNLinear(3, 2, posterior=row_posterior.Rows(), prior=priors.ARD())
    assert layer(torch.randn(4, 3)).shape == (4, 2)
    assert layer.kl().isfinite()


def test_no_family_beats_the_widest_one(tmp_path, monkeypatch, capsys):
    kept = {"Diagonal": posteriors.Diagonal(), "CorrectedMatrixNormal": posteriors.CorrectedMatrixNormal()}
    monkeypatch.setattr(families, "FAMILIES", kept)
    monkeypatch.setattr(families, "PRIORS", {"Normal(None)": priors.Normal(None)})
    found = families.main(["--points", "60", "--iterations", "300", "--out", str(tmp_path)])
    for column in found.values():
        assert column["Rows"] <= column["CorrectedMatrixNormal"] + 1e-3
        assert column["CorrectedMatrixNormal"] < column["Rows"] + 1  # it holds the exact posterior, of rows alike
        assert column["Diagonal"] > column["CorrectedMatrixNormal"] + 10
    assert (tmp_path / "result.json").exists()
    assert "| Diagonal |" in capsys.readouterr().out
