"""What a family need not write: the six methods it must, what replaces the others, and who asks for them."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Independent, Normal

import mnvi
from mnvi import posteriors, priors
from mnvi.covariance import LowRank
from mnvi.posteriors import Posterior, PosteriorSpec
from tests.cases import FAMILIES, PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close, build, dense_covariance

pytestmark = pytest.mark.usefixtures("float64")
N, P = 4, 6
REQUIRED = {"set_scale_", "draw_noise", "deviation", "variance", "log_volume", "distribution"}
LOCAL = {"output_deviation", "transposed_output_deviation", "conv_deviation", "conv_transpose_deviation", "flip_parts"}
NATURAL = {"natural_parts", "whitened", "unwhitened"}


@dataclass(frozen=True)
class OneScale(PosteriorSpec):
    """Independent weights of one variance, by the required methods only."""

    def build(self, shape, *, split=None, device=None, dtype=None):
        return OneScalePosterior(shape, device, dtype)

    def num_parameters(self, shape, split=None):
        return 1


class OneScalePosterior(Posterior):
    def __init__(self, shape, device, dtype):
        super().__init__(shape)
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))

    @torch.no_grad()
    def set_scale_(self, scale):
        self.scale.fill_(scale)

    def draw_noise(self):
        return (torch.randn(self.shape, device=self.scale.device, dtype=self.scale.dtype),)

    def deviation(self, noise):
        return self.scale * noise[0]

    def variance(self):
        return self.scale.square().expand(self.shape)

    def log_volume(self):
        return math.prod(self.shape) * self.scale.abs().log()

    def distribution(self, loc):
        return Independent(Normal(loc, self.scale.abs()), 2)


def test_six_methods_make_a_family():
    assert Posterior.__abstractmethods__ == REQUIRED
    posterior = OneScale().build((N, P))
    assert not any(posterior.provides(name) for name in LOCAL | NATURAL | {"mahalanobis"})


@cases("family", FAMILIES)
def test_families_of_the_library_provide_every_estimator(family):
    posterior = build(family, (N, P))
    missing = {name for name in LOCAL | {"mahalanobis"} if not posterior.provides(name)}
    scaled = isinstance(family, posteriors.ScaledMatrixNormal)
    if isinstance(family, posteriors.CorrectedMatrixNormal):
        assert missing == {"conv_deviation", "conv_transpose_deviation"}
        return
    joint = {"conv_deviation", "flip_parts"} if scaled and isinstance(family.row, LowRank) else set()
    assert missing == ({"conv_transpose_deviation"} | joint if scaled else set())
    natural = isinstance(family, (posteriors.MatrixNormal, posteriors.Diagonal))
    assert {posterior.provides(name) for name in NATURAL} == {natural}


def test_a_method_nobody_knows_is_an_error():
    with pytest.raises(AttributeError, match="conv_deviations"):
        OneScale().build((N, P)).provides("conv_deviations")


@cases("family", SOME_FAMILIES)
def test_the_default_of_scaled_variance_is_what_the_families_compute(family):
    posterior, row, column = build(family, (N, P)), torch.randn(N), torch.randn(P)
    assert_close(posterior.scaled_variance(row, column), Posterior.scaled_variance(posterior, row, column))


def transposed_linear(**options):
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils", "forward": lambda self, x: x})()
    conv1d.weight, conv1d.bias = nn.Parameter(torch.randn(P, N)), nn.Parameter(torch.randn(N))
    return mnvi.to_bayesian(nn.Sequential(conv1d), **options)[0]


LAYERS = {
    "linear": (lambda **k: mnvi.MNLinear(P, N, **k), (5, P), F.linear),
    "transposed-linear": (transposed_linear, (5, P), lambda x, w, b: x @ w + b),
    "conv": (lambda **k: mnvi.MNConv2d(P, N, 2, **k), (3, P, 4, 4), F.conv2d),
    "transposed-conv": (lambda **k: mnvi.MNConvTranspose2d(P, N, 2, **k), (3, P, 4, 4), F.conv_transpose2d),
}


def law_one_weight_a_call(layer, x, apply):
    torch.manual_seed(1)
    output = layer(x)
    torch.manual_seed(1)
    assert_close(output, apply(x, layer.draw_weight(), layer.bias))


@cases("row", LAYERS)
def test_without_a_local_estimator_a_layer_draws_one_weight_a_call(row):
    make, shape, apply = row
    x = torch.randn(shape)
    layer = make(posterior=OneScale(), estimator="local")
    assert layer.estimator == "local"
    law_one_weight_a_call(layer, x, apply)
    assert not torch.equal(layer(x), layer(x))
    with pytest.raises(AssertionError):  # what a family with an estimator does
        law_one_weight_a_call(make(posterior=posteriors.Diagonal(), estimator="local"), x, apply)


def test_half_of_the_estimators_serve_half_of_the_layers():
    class Linear(OneScalePosterior):
        def output_deviation(self, x):
            return self.scale * x.norm(dim=-1, keepdim=True) * torch.randn(*x.shape[:-1], self.shape[0])

    for name, (make, shape, apply) in LAYERS.items():
        layer, x = make(posterior=OneScale(), estimator="local"), torch.randn(shape)
        layer.posterior.__class__ = Linear
        if name == "linear":
            torch.manual_seed(1)
            output = layer(x)
            torch.manual_seed(1)
            assert_close(output - F.linear(x, layer.weight, layer.bias), layer.posterior.output_deviation(x))
        else:
            law_one_weight_a_call(layer, x, apply)


@cases("prior", PRIORS)
def test_every_prior_of_the_table_serves_a_narrow_family(prior):
    layer = mnvi.MNLinear(P, N, posterior=OneScale(), prior=prior)
    narrow = layer.kl()
    twin = mnvi.MNLinear(P, N, posterior=posteriors.Diagonal(), prior=prior)
    twin.load_state_dict(layer.state_dict(), strict=False)
    twin.prior.reset_parameters()
    with torch.no_grad():
        twin.posterior.log_scale.copy_(layer.posterior.scale.log())
    assert_close(narrow, twin.kl())


@pytest.mark.parametrize("name", sorted(LOCAL | {"mahalanobis"} | NATURAL))
def test_what_is_missing_is_named_with_who_needs_it(name):
    posterior, x = OneScale().build((N, P)), torch.randn(3, P)
    arguments = {"conv_deviation": (x, None, 1), "conv_transpose_deviation": (x, None, None, 1)}
    arguments |= {"mahalanobis": (torch.eye(N), torch.eye(P)), "natural_parts": ()}
    with pytest.raises(NotImplementedError, match=rf"OneScalePosterior has no {name}\(\), which .* needs"):
        getattr(posterior, name)(*arguments.get(name, (x,)))


def test_a_matrix_normal_prior_names_itself_and_the_family():
    prior = priors.MatrixNormal(torch.zeros(N, P), torch.eye(N), torch.eye(P))
    layer = mnvi.MNLinear(P, N, posterior=OneScale(), prior=prior)
    with pytest.raises(NotImplementedError, match=r"OneScalePosterior .* mnvi\.priors\.MatrixNormal"):
        layer.kl()


def test_natural_gradient_leaves_a_narrow_family_to_another_optimiser():
    layer = mnvi.MNLinear(P, N, posterior=OneScale())
    with pytest.raises(ValueError, match="no layer"):
        mnvi.optim.NaturalGradient(layer)
    assert mnvi.optim.other_parameters(layer) == list(layer.parameters())


@cases("family", SOME_FAMILIES)
def test_names_of_the_first_version_warn(family):
    posterior = build(family, (N, P))
    with pytest.warns(DeprecationWarning, match="log_volume"):
        assert_close(posterior.log_det(), 2 * posterior.log_volume())
    with pytest.warns(DeprecationWarning, match="distribution"):
        entropy = posterior.entropy()
    exact = posterior.distribution(torch.zeros(N, P)).entropy()
    if posterior.exact:
        assert_close(entropy, exact)
    else:  # as far below as half the log-determinant is
        gap = torch.linalg.slogdet(dense_covariance(posterior)).logabsdet / 2 - posterior.log_volume()
        assert_close(entropy, exact - gap)


def test_natural_gradient_refuses_a_family_that_has_only_a_part_of_what_it_needs():
    class Half(OneScalePosterior):
        def natural_parts(self):
            return []

        def whitened(self, gradient):
            return gradient

    model = mnvi.MNLinear(3, 2, posterior=OneScale())
    model.posterior.__class__ = Half
    with pytest.raises(ValueError, match=r"Half has natural_parts\(\) but no unwhitened\(\)"):
        mnvi.optim.NaturalGradient(model)
