"""The laws of natural parts and of whitening, for every family with natural-gradient steps."""

import pytest
import torch

from mnvi.covariance.base import NaturalPart
from tests.cases import FAMILIES, cases
from tests.laws import assert_close, build, dense_covariance

pytestmark = pytest.mark.usefixtures("float64")
N, P = 4, 6
NATURAL = {name: family for name, family in FAMILIES.items() if family.build((N, P)).provides("natural_parts")}


def law_adjoint(posterior):
    """⟨unwhitened(s), g⟩ = ⟨s, whitened(g)⟩, and unwhitened noise is a deviation."""
    (s,), g = posterior.draw_noise(), torch.randn(posterior.shape)
    assert posterior.whitened(g).shape == s.shape
    assert_close((posterior.unwhitened(s) * g).sum(), (s * posterior.whitened(g)).sum())
    assert_close(posterior.unwhitened(s), posterior.deviation((s,)))


def law_contraction(posterior, part):
    """A loss that depends on Cov only changes by −½⟨H, S⟩ along contract_(S), H = whitened_gradient: central slopes."""
    tril = [torch.linalg.cholesky(torch.eye(size) + 0.3 * torch.ones(size, size)) for size in posterior.shape]
    saved = [p.detach().clone() for p in part.parameters()]

    def loss():
        return posterior.mahalanobis(*tril) - 2.0 * posterior.log_volume()

    h = part.whitened_gradient(*torch.autograd.grad(loss(), list(part.parameters())))
    slope, step = 0.0, torch.randn_like(h)
    if step.dim() > 1 and not isinstance(part, type(posterior)):
        step = step + step.mT
    for sign in (1, -1):
        part.contract_(sign * 1e-5 * step)
        slope += sign * loss().item() / 2e-5
        with torch.no_grad():
            for p, value in zip(part.parameters(), saved, strict=True):
                p.copy_(value)
    assert slope == pytest.approx(-0.5 * (h * step).sum().item(), rel=1e-6, abs=1e-6)


@cases("family", NATURAL)
def test_unwhitening_is_the_adjoint_of_whitening(family):
    law_adjoint(build(family, (N, P)))


@cases("family", NATURAL)
def test_every_part_is_a_natural_part(family):
    posterior = build(family, (N, P))
    for part, count in posterior.natural_parts():
        assert isinstance(part, NaturalPart)
        assert {*part.parameters()} <= {*posterior.parameters()}
        assert count * part.size == N * P


@cases("family", NATURAL)
def test_contraction_descends_along_the_whitened_gradient(family):
    posterior = build(family, (N, P))
    for part, _ in posterior.natural_parts():
        law_contraction(posterior, part)


@cases("family", NATURAL)
def test_a_step_of_zero_changes_nothing(family):
    posterior = build(family, (N, P))
    before = dense_covariance(posterior).detach()
    for part, _ in posterior.natural_parts():
        gradients = [torch.zeros_like(p) for p in part.parameters()]
        part.contract_(part.whitened_gradient(*gradients))
    assert_close(dense_covariance(posterior), before)


BREAKS = {
    "one factor transposed": (
        law_adjoint,
        {"whitened": lambda self, g: self.row.multiply(self.column.multiply(g).mT).mT},
    ),
    "a sign": (law_adjoint, {"unwhitened": lambda self, s: -self.deviation((s,))}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_negative_control(name):
    law, methods = BREAKS[name]
    posterior = build(FAMILIES["MatrixNormal-dense-both"], (N, P))
    law(posterior)
    posterior.__class__ = type("Broken", (type(posterior),), methods)
    with pytest.raises(AssertionError):
        law(posterior)


def test_negative_control_of_the_contraction():
    posterior = build(FAMILIES["MatrixNormal-dense-both"], (N, P))
    part = posterior.row
    law_contraction(posterior, part)
    gradient = type(part).whitened_gradient
    part.__class__ = type("Broken", (type(part),), {"whitened_gradient": lambda self, *g: 2 * gradient(self, *g)})
    with pytest.raises(AssertionError):
        law_contraction(posterior, part)
