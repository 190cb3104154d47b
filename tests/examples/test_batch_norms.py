"""Statistics of batch norms under the mean weights and under each draw, against batches run by hand."""

import pytest
import torch
from torch import nn

import mnvi
from examples.common import batch_norms, metrics

IMAGES = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = mnvi.to_bayesian(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)))
    network[0].posterior.set_scale_(0.5)
    return network.eval()


def test_statistics_under_the_mean_weights(model):
    batch_norms.use_mean_statistics_(model, IMAGES)
    entering = nn.functional.linear(IMAGES, model[0].weight, model[0].bias)
    torch.testing.assert_close(model[1].running_mean, entering.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(model[1].running_var, entering.var(0), atol=0.05, rtol=0.05)
    assert not model.training


def test_a_draw_has_statistics_of_its_own(model):
    for _ in range(2):
        network = batch_norms.draw(model, IMAGES)
        entering = network[0](IMAGES)
        torch.testing.assert_close(network[1].running_mean, entering.mean(0), atol=0.02, rtol=0)
        torch.testing.assert_close(network[1](entering).std(0), torch.ones(5), atol=0.05, rtol=0)
        assert (network[0].weight - model[0].weight).abs().max() > 0.1


def test_the_sampled_prediction_is_the_mean_over_such_draws(model):
    torch.manual_seed(1)
    found = metrics.mixture(metrics.sampled_logits(model, IMAGES[:50], 3, IMAGES))
    torch.manual_seed(1)
    expected = [batch_norms.draw(model, IMAGES)(IMAGES[:50]).softmax(1) for _ in range(3)]
    torch.testing.assert_close(found, torch.stack(expected).mean(0))
    assert torch.equal(model[1].running_mean, torch.zeros(5))


def test_without_batch_norms_nothing_changes():
    torch.manual_seed(0)
    model = mnvi.to_bayesian(nn.Sequential(nn.Linear(4, 3))).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch_norms.use_mean_statistics_(model, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    found = metrics.mixture(metrics.sampled_logits(model, IMAGES[:9], 4, IMAGES))
    torch.manual_seed(1)
    torch.testing.assert_close(found, mnvi.predict(model, IMAGES[:9], 4, chunk_size=8).mean)


def test_the_temperature_of_draws_is_that_of_the_labels():
    """Labels are drawn from logits that came out twice as large; the estimate has a deviation of 0.03."""
    logits = torch.randn(5000, 6) * 2
    y = logits.softmax(1).multinomial(1)[:, 0]
    found = metrics.temperature(2 * logits[None], y)
    assert found == pytest.approx(2, abs=0.15)
    torch.testing.assert_close(metrics.mixture(2 * logits[None], 2.0), logits.softmax(1))
