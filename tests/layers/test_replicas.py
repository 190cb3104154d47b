"""Replicas: what ``DataParallel`` makes of a model on each device draws and trains as the model does."""

import pytest
import torch

import mnvi
from mnvi import MNConv2d, MNLinear, frozen_sample
from tests.cases import PRIORS, SOME_FAMILIES, cases
from tests.laws import assert_close

pytestmark = pytest.mark.usefixtures("float64")


def replica(model):
    """What ``DataParallel`` makes of a model on each device: modules without parameters, whose tensors are copies."""
    copies = {parameter: parameter.clone() for parameter in model.parameters()}
    modules = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in modules.items():
        for name, child in module._modules.items():
            setattr(twin, name, modules[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, copies[parameter])
    return modules[model]


REPLICATED = {
    "conv": (lambda **options: MNConv2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "transposed": (lambda **options: mnvi.MNConvTranspose2d(2, 4, 3, **options), (2, 2, 4, 4)),
    "linear": (lambda **options: MNLinear(4, 3, **options), (7, 4)),
}


@pytest.mark.parametrize("estimator", ["local", "weight"])
@cases("layer", REPLICATED)
@cases("family", SOME_FAMILIES)
def test_replicas_draw_as_their_model_and_send_it_gradients(family, layer, estimator):
    build, shape = layer
    model, x = build(posterior=family, estimator=estimator), torch.randn(shape)
    twin = replica(model)
    assert not list(twin.parameters())
    draws = []
    for module in (model, twin):
        torch.manual_seed(1)
        draws.append(module(x))
    assert torch.equal(*draws)
    assert_close(twin.kl(), model.kl().detach())
    with frozen_sample(twin):
        assert torch.equal(twin(x), twin(x))
    (draws[1].square().sum() + twin.kl()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@cases("prior", PRIORS)
def test_replicas_have_the_kl_of_every_prior(prior):
    model = MNLinear(4, 3, prior=prior)
    if not model.kl().isclose(model.kl()):  # precisions that a call improves
        for _ in range(50):
            model.kl()
    assert_close(replica(model).kl(), model.kl().detach())


@pytest.mark.parametrize("nonlinearity", ["modrelu", "tanh"])
def test_replicas_of_orthogonal_recurrent_layers_run(nonlinearity):
    model = mnvi.rnn.OrthogonalRNN(3, 4, nonlinearity=nonlinearity, num_layers=2)
    x = torch.randn(5, 2, 3)
    expected, _ = model(x)
    output, _ = replica(model)(x)
    assert_close(output, expected.detach())
    output.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(TypeError, match="complex"):
        replica(model)(x.to(torch.complex128))
