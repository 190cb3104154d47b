"""The benchmarks run; what they measure is not asserted."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import layers
import manifolds


def test_benchmark_of_the_layers_runs():
    for contenders, shape in ((layers.mlp_contenders(), (2, 784)), (layers.vgg_contenders(), (2, 3, 32, 32))):
        results = layers.measure(contenders, torch.randn(shape), rounds=1)
        assert set(results) == set(contenders)
        assert next(iter(results.values()))["ratio"] == 1


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
