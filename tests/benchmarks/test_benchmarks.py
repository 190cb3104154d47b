"""The benchmarks run; what they measure is not asserted."""

import json

import pytest
import torch

import mnvi
from benchmarks import defaults, estimators, layers, manifolds, measuring, orthogonal


@pytest.mark.slow
def test_benchmark_of_the_layers_runs():
    for contenders, shape in ((layers.mlp_contenders(), (2, 784)), (layers.vgg_contenders(), (2, 3, 32, 32))):
        results = layers.measure(contenders, torch.randn(shape), rounds=1)
        assert set(results) == set(contenders)
        assert next(iter(results.values()))["ratio"] == 1


TITLES = [pytest.param(title, marks=[pytest.mark.slow] * ("ResNet" in title)) for title in defaults.NETWORKS]


@pytest.mark.parametrize("title", TITLES)
def test_with_the_defaults_a_step_takes_little_more_memory_than_the_plain_networks(title):
    """The limit of what the default family promises; of time nothing is asserted."""
    rows = {name: (step.state(), step.peak()) for name, step in defaults.steps(*defaults.NETWORKS[title]).items()}
    for found, plain in zip(rows["to_bayesian, defaults"], rows["plain"], strict=True):
        assert plain < found < 2.5 * plain


def test_resnet18_is_the_published_one():
    assert sum(p.numel() for p in defaults.resnet18().parameters()) == 11_689_512


def test_benchmark_of_the_defaults_runs(capsys):
    rows = defaults.measure((lambda: defaults.mlp(6, 5, 3), (4, 6), 3), rounds=1, seconds=1)
    defaults.show_memory(rows)
    assert rows["plain"]["ratio"] == rows["plain"]["state_ratio"] == rows["plain"]["peak_ratio"] == 1
    assert "state" in capsys.readouterr().out


def test_benchmark_of_the_estimators_runs():
    rows = estimators.measure(estimators.FAMILIES["diagonal"], steps=3, count=3, rounds=1)
    assert rows["weight"]["ratio"] == 1
    assert all(row["noise, means"] > 0 for row in rows.values())
    assert rows["another batch"]["noise, scales"] == 0


def test_an_antithetic_gradient_has_no_noise_where_the_loss_is_quadratic():
    torch.manual_seed(0)
    layer = mnvi.MNLinear(3, 2, bias=False)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    gradients = []
    for _ in range(2):
        with mnvi.frozen_sample(layer):
            first = estimators.gradient(layer, lambda: (layer(x) - y).square().sum())[0]
            estimators.reflect(layer)
            gradients.append(first + estimators.gradient(layer, lambda: (layer(x) - y).square().sum())[0])
    torch.testing.assert_close(*gradients)


def test_vgg_is_the_published_one():
    model, _ = layers.vgg_contenders()["nn.Conv2d"]
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == 62_270


def test_benchmark_of_the_manifolds_runs(monkeypatch, capsys):
    monkeypatch.setattr(manifolds, "SHAPES", [(8, 3)])
    results = manifolds.tables(rounds=1, seconds=1, only="")
    assert len(results) == 6
    for table in results.values():
        assert next(iter(table.values()))["ratio"] == 1
    assert manifolds.drift(manifolds.Stiefel(), 100, steps=150)["largest"] < 1e-5


@pytest.mark.slow
def test_benchmark_of_orthogonal_weights_runs(monkeypatch, capsys):
    monkeypatch.setattr(orthogonal, "TALL", 40)
    makers = [
        lambda: orthogonal.exponentials(6),
        lambda: orthogonal.reflections(6),
        lambda: orthogonal.stiefel(40, 3),
        lambda: orthogonal.descent(6),
    ]
    for make in makers:
        results = measuring.measure(make(), rounds=1)
        assert next(iter(results.values()))["ratio"] == 1
    memory = orthogonal.peak_memory()
    assert 0 <= memory["above the import"] < memory["in all"]


def test_all_exponential_maps_of_the_benchmark_are_of_one_matrix():
    layers = [step.__closure__[1].cell_contents for step in orthogonal.exponentials(6).values()]
    weights = [layer.weight for layer in layers]
    assert torch.allclose(weights[0], weights[-2], atol=1e-5)


def test_results_are_written_whole(tmp_path):
    path = tmp_path / "result.json"
    measuring.write_json(str(path), {"threads": 1}, ("torch",), {"table": {"a": {"ratio": 1}}})
    assert json.loads(path.read_text())["results"]["table"]["a"]["ratio"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(SystemExit, match="there are: some table"):
        measuring.chosen({"some table": dict}, "none")
