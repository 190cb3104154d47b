"""What an earlier version called otherwise goes on working, and says how it is called now."""

import copy
import importlib
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import mnvi
from mnvi.likelihoods import Gaussian, Standardized
from mnvi.parametrizations import Trivialization
from mnvi.priors import Prior, PriorSpec
from tests.cases import cases

NAMES = {
    "posteriors.Family": "PosteriorSpec",
    "covariance.Covariance": "FactorSpec",
    "priors.PriorModule": "Prior",
    "likelihoods.Standardised": "Standardized",
}


def reread(value, new, old):
    """``value`` from a pickle in which its class has the module and name ``old`` instead of ``new``."""
    data = pickle.dumps(value, protocol=2)  # which writes a class as its module and name, a line each
    changed = data.replace(*(b"c" + "\n".join(each).encode() + b"\n" for each in (new, old)))
    assert changed != data
    return pickle.loads(changed)


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_old_names_of_a_package_are_the_new_ones(old, new):
    package, name = old.split(".")
    module = importlib.import_module(f"mnvi.{package}")
    with pytest.warns(DeprecationWarning, match=rf"mnvi\.{old} is now called mnvi\.{package}\.{new}") as caught:
        found = getattr(module, name)
    assert found is getattr(module, new)
    assert caught[0].filename == __file__  # the line to change
    assert name not in module.__all__


def test_an_import_of_an_old_name_works():
    with pytest.warns(DeprecationWarning, match="Standardized"):
        from mnvi.likelihoods import Standardised
    assert Standardised is Standardized


@cases("package", {each: importlib.import_module(f"mnvi.{each.split('.')[0]}") for each in NAMES})
def test_other_names_are_missing_as_ever(package):
    with pytest.raises(AttributeError, match="has no attribute 'Unheard'"):
        package.Unheard  # noqa: B018


def test_a_trivialization_takes_the_old_name_of_its_option():
    with pytest.warns(DeprecationWarning, match=r"optimiser_state= .* is now called optimizer_state=") as caught:
        trivialization = Trivialization(optimiser_state="reset")
    assert caught[0].filename == __file__
    assert trivialization.optimizer_state == "reset"
    with pytest.raises(TypeError, match="optimizer_state= and optimiser_state="):
        Trivialization(optimizer_state="keep", optimiser_state="reset")


def test_a_trivialization_has_the_old_name_of_its_attribute():
    trivialization = Trivialization(optimizer_state="transport")
    with pytest.warns(DeprecationWarning, match=r"Trivialization\.optimiser_state is now") as caught:
        assert trivialization.optimiser_state == "transport"
    with pytest.warns(DeprecationWarning, match="optimizer_state"):
        trivialization.optimiser_state = "reset"
    assert caught[0].filename == __file__
    assert trivialization.optimizer_state == "reset"
    assert "optimiser_state" not in dir(trivialization)


def test_a_rebase_takes_the_old_name_of_the_optimizer():
    layer = mnvi.constrain(nn.Linear(3, 3), "weight", Trivialization(optimizer_state="reset", rebase_every=None))
    chain = layer.parametrizations.weight
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer.weight.sum().backward()
    optimizer.step()
    assert optimizer.state[chain.original]
    with pytest.warns(DeprecationWarning, match="optimiser="):
        chain[0].rebase(chain.original, optimiser=optimizer)
    assert not optimizer.state[chain.original]


def test_a_pickled_trivialization_of_an_earlier_version_loads():
    layer = mnvi.constrain(nn.Linear(3, 3), "weight", Trivialization(optimizer_state="reset"))
    trivialization = layer.parametrizations.weight[0]
    state = copy.copy(trivialization.__dict__)
    state["optimiser_state"] = state.pop("optimizer_state")
    old = Trivialization.__new__(Trivialization)
    old.__setstate__(state)
    assert old.optimizer_state == "reset"
    assert "optimiser_state" not in vars(old)


def test_a_pickled_layout_of_an_earlier_version_loads():
    layout = mnvi.constrain(nn.Conv2d(2, 3, 3), "weight", mnvi.parametrizations.OWN()).parametrizations.weight[0].layout
    new = ("mnvi.parametrizations._matrix_layout", "MatrixLayout")
    assert reread(layout, new, ("mnvi.parametrizations.layout", "Layout")) == layout


def test_a_pickled_likelihood_of_an_earlier_version_loads():
    likelihood = Standardized(Gaussian(), 2.0, 3.0)
    new = ("mnvi.likelihoods.standardized", "Standardized")
    loaded = reread(likelihood, new, ("mnvi.likelihoods.standardised", "Standardised"))
    assert type(loaded) is Standardized
    assert (float(loaded.mean), float(loaded.std)) == (2.0, 3.0)


def test_a_pickled_converted_model_of_an_earlier_version_loads_and_its_check_comes_off():
    model = mnvi.to_bayesian(nn.Sequential(nn.Linear(3, 2)))
    names = [("mnvi._models.bypassed_layers", "check_first_pass"), ("mnvi.past_forward", "check_first_pass")]
    loaded = reread(model, *names)
    assert len(loaded._forward_hooks) == 1
    loaded(torch.randn(4, 3)).sum().backward()
    assert not loaded._forward_hooks


def test_a_pickled_spd_manifold_of_an_earlier_version_loads():
    manifold = mnvi.manifolds.SPD("log-euclidean")
    loaded = reread(
        manifold, ("mnvi.manifolds._spd_metrics", "LogEuclidean"), ("mnvi.manifolds.spd_metrics", "LogEuclidean")
    )
    x = loaded.random(3, 3)
    assert torch.equal(loaded.inner(x, x, x), manifold.inner(x, x, x))


@pytest.mark.parametrize("prior", [mnvi.priors.Normal(torch.full((2, 3), 0.5))])
def test_a_pickled_prior_of_tensors_of_an_earlier_version_converts(prior):
    layer = mnvi.MNLinear(3, 2, prior=prior)
    del layer.prior._kept  # which came later
    assert pickle.loads(pickle.dumps(layer)).double().kl().dtype == torch.float64


@pytest.mark.filterwarnings("ignore")  # torch's own; in a whole graph a warning of ours would be an error
def test_old_names_of_a_layer_compile():
    layer = mnvi.MNLinear(3, 2, posterior=mnvi.posteriors.Diagonal())
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: layer(x) if layer.samples else x, fullgraph=True, backend="eager")
    assert compiled(torch.randn(4, 3)).shape == (4, 2)


def test_a_description_of_a_prior_that_derives_from_prior_is_told_of_priorspec():
    with pytest.raises(TypeError, match=r"Mine has a build\(\): descriptions of priors derive from PriorSpec"):

        @dataclass(frozen=True)
        class Mine(Prior):
            def build(self, shape, *, device=None, dtype=None): ...

    @dataclass(frozen=True, eq=False)
    class Spec(PriorSpec):
        def build(self, shape, *, device=None, dtype=None):
            return mnvi.priors.Normal().build(shape, device=device, dtype=dtype)

    assert isinstance(mnvi.MNLinear(3, 2, prior=Spec()).prior, Prior)
