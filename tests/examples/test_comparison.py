"""The comparison: metrics and corruptions against known answers, one epoch of everything, and going on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from examples import comparison
from examples.baselines import contest, networks
from examples.common import metrics, quality, scores, shift_plots, shifts
from examples.common.data import Data
from examples.papers import digits

TINY = ["--epochs", "1", "--images", "64", "--test", "40", "--shifted", "20", "--draws", "3", "--members", "2"]
SOME = ["plain", "dropout", "ensemble", "diagonal", "matrix-normal"]  # of no other package


# Metrics --------------------------------------------------------------------------------------------------------------


def logits(draws, count, classes=4):
    return 2 * torch.randn(draws, count, classes, dtype=torch.float64)


@pytest.mark.parametrize("draws", [1, 3])
def test_metrics_are_those_of_the_mean_probabilities(draws):
    z, y = logits(draws, 300), torch.randint(4, (300,))
    p = z.softmax(2).mean(0)
    found = quality.describe(z, y)
    expected = metrics.evaluate(p, y)  # of which none is torchmetrics'
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_the_brier_score_of_known_predictions():
    z = torch.tensor([[[0.9, 0.1], [0.9, 0.1]]], dtype=torch.float64).log()
    assert quality.describe(z, torch.tensor([0, 1]))["brier"] == pytest.approx((0.02 + 1.62) / 2)


def test_areas_are_those_of_entropies():
    own, strange = logits(3, 50), logits(3, 70) / 2
    z = torch.cat([own, strange], 1)
    total = entropy(z.softmax(2).mean(0).numpy(), axis=1)
    expected = np.mean(entropy(z.softmax(2).numpy(), axis=2), 0)
    labels = np.repeat([0, 1], [50, 70])
    found = quality.separation(own, strange)
    assert found["entropy"] == pytest.approx(100 * roc_auc_score(labels, total), rel=1e-5)
    assert found["information"] == pytest.approx(100 * roc_auc_score(labels, total - expected), rel=1e-5)


def test_a_single_draw_has_no_mutual_information():
    assert quality.separation(logits(1, 5), logits(1, 6))["information"] is None


def test_the_diagram_has_the_calibration_error():
    z, y = logits(2, 400), torch.randint(4, (400,))
    count, confidence, accuracy = np.array(quality.reliability(z, y)).T
    assert count.sum() == 400
    error = 100 * (count / 400 * np.abs(confidence - accuracy)).sum()
    assert error == pytest.approx(metrics.calibration_error(z.softmax(2).mean(0), y))


# Corruptions ----------------------------------------------------------------------------------------------------------


def photographs():
    """Smooth images (6, 3, 8, 8) with pixels from 0 to 1."""
    coarse = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")


@pytest.mark.parametrize("kind", shifts.CORRUPTIONS)
def test_corruptions_grow_with_their_strength(kind):
    x = photographs()
    before = x.clone()
    found = [shifts.CORRUPTIONS[kind](x, strength) for strength in shifts.STRENGTHS]
    distances = [(each - x).square().mean().item() for each in found]
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert all(each.shape == x.shape and each.min() >= 0 and each.max() <= 1 for each in found)
    assert torch.equal(found[2], shifts.CORRUPTIONS[kind](x, 3))
    assert torch.equal(x, before)


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    x = photographs()
    found = shifts.contrast(x, 3)
    torch.testing.assert_close(found.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(found.std((1, 2, 3)), 0.4 * x.std((1, 2, 3)))


def test_blur_spreads_a_point_to_the_variance_of_the_filter():
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    found = shifts.blur(x, 5)[0, 0]
    place = torch.arange(41.0) - 20
    assert found.sum().item() == pytest.approx(1, rel=1e-5)
    assert (found.sum(1) * place.square()).sum().item() == pytest.approx(1.5**2, rel=0.03)  # cut at 3 σ


def test_rotation_by_a_right_angle_is_exact():
    x = photographs()
    found = shifts.rotation(x, 9)
    one, other = torch.rot90(x, 1, (2, 3)), torch.rot90(x, -1, (2, 3))
    same = [torch.allclose(found[0], each[0], atol=1e-5) for each in (one, other)]
    assert sum(same) == 1
    first, second = (one, other) if same[0] else (other, one)
    torch.testing.assert_close(found[::2], first[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1::2], second[1::2], atol=1e-5, rtol=0)


def test_shuffled_patches_are_the_same_ones_in_another_order():
    x = torch.rand(5, 1, 8, 8)
    found = shifts.shuffled_patches(x, 4)

    def patches(image):
        return {tuple(image[0, i : i + 2, j : j + 2].flatten().tolist()) for i in (0, 2, 4, 6) for j in (0, 2, 4, 6)}

    assert [patches(each) for each in found] == [patches(each) for each in x]
    assert not any(torch.equal(a, b) for a, b in zip(x, found, strict=True))


def images(shape, offset):
    """Data whose training images have black at ``offset`` and white at ``offset`` + 2."""
    x = torch.rand(20, *shape)
    x[0], x[1] = 0, 1
    return Data(offset + 2 * x, torch.zeros(20), offset + 2 * x, torch.zeros(20), 10, "squares")


def test_images_of_another_set_are_normalised_as_ones_own(monkeypatch):
    own, other = images((3, 12, 10), -1.0), images((1, 8, 8), 5.0)
    monkeypatch.setattr(shifts, "load", {"fashion_mnist": other}.__getitem__)
    found, title = shifts.outside("cifar10", own, 4)
    assert title == "squares, test images"
    assert found.shape == (4, 3, 12, 10)
    inside = found[:, :, 2:10, 1:9]
    torch.testing.assert_close(inside, (other.test_x[:4] - 6).expand(4, 3, 8, 8))
    assert found.sum().item() == pytest.approx(inside.sum().item() - 4 * 3 * (120 - 64), rel=1e-4)  # black is −1


# The table ------------------------------------------------------------------------------------------------------------


def run(seed, value, method="plain", information=None):
    corrupted = {kind: [{"accuracy": value - i, "nll": 1.0, "ece": 2.0} for i in range(5)] for kind in ("a", "b")}
    test = {"accuracy": value, "nll": 0.5, "ece": 1.0, "brier": 0.1}
    row = {"test": test, "outside": {"entropy": 90.0, "information": information}, "corrupted": corrupted}
    return {"method": method, "seed": seed, "cost": 1.0, "rows": {method: row}}


def test_the_table_has_means_and_deviations_over_seeds():
    found = scores.table([run(0, 80.0), run(1, 82.0), run(0, 70.0, "other", 60.0)])
    assert found["plain"]["accuracy"] == [81.0, pytest.approx(2**0.5)]
    assert found["plain"]["shifted accuracy"] == [79.0, pytest.approx(2**0.5)]
    assert found["plain"]["information"] is None
    assert found["other"]["information"] == [60.0, 0.0]
    assert scores.by_strength([run(0, 80.0), run(1, 82.0)], "plain", "accuracy").tolist() == [
        [80, 80, 79, 78, 77, 76],
        [82, 82, 81, 80, 79, 78],
    ]
    shown = scores.text(found).splitlines()
    assert "81.00" in shown[2]
    assert "–" in shown[2]
    assert "–" not in shown[3]


# The program ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_one_epoch_of_everything_goes_on_where_it_was(tmp_path, monkeypatch):
    out = ["--out", str(tmp_path)]
    first = comparison.main([*TINY, *out, "--methods", "plain"])
    assert list(first["runs"]) == ["plain-0"]
    trained = (tmp_path / "networks-0.pt").read_bytes()
    here = [name for name, method in contest.METHODS.items() if method.is_here]
    result = comparison.main([*TINY, *out])
    assert list(result["runs"]) == [f"{name}-0" for name in here]
    assert set(SOME) <= set(here)
    assert result["runs"]["plain-0"] == first["runs"]["plain-0"]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["table"]["plain"]["cost"] == [1.0, 0.0]
    assert result["table"]["plain + temperature"]["accuracy"] == result["table"]["plain"]["accuracy"]
    for name, size in {"shifts": (1950, 690), "reliability": None}.items():
        with Image.open(tmp_path / f"{name}.png") as image:
            assert size in (None, image.size)
    assert (tmp_path / "networks-0.pt").read_bytes() == trained

    never = {name: replace(each, run=lambda _: pytest.fail("again")) for name, each in contest.METHODS.items()}
    monkeypatch.setattr(comparison, "METHODS", never)
    assert comparison.main([*TINY, *out]) == result


def test_what_is_not_installed_is_left_out_with_a_line(tmp_path, monkeypatch, capsys):
    missing = replace(contest.METHODS["ivon"], package="a_package_of_no_name")
    monkeypatch.setitem(comparison.METHODS, "ivon", missing)
    result = comparison.main([*TINY, "--out", str(tmp_path), "--methods", "ivon"])
    assert result == {"runs": {}, "table": {}}
    assert "ivon is left out, its package is not installed: make compare, or pip install" in capsys.readouterr().out


def test_results_of_other_settings_are_refused(tmp_path):
    comparison.main([*TINY, "--out", str(tmp_path), "--methods", "plain"])
    with pytest.raises(ValueError, match="of other settings"):
        comparison.main([*TINY, "--out", str(tmp_path), "--methods", "dropout", "--lr", "0.1"])


def test_networks_that_cannot_be_read_are_to_be_deleted(tmp_path):
    (tmp_path / "networks-0.pt").write_bytes(b"PK half a file")
    with pytest.raises(
        ValueError, match=r"(?s)networks-0\.pt is not a checkpoint .*; give another --out, or delete it$"
    ):
        comparison.main([*TINY, "--out", str(tmp_path), "--methods", "plain"])


@pytest.mark.parametrize(
    ("main", "name", "missing"), [(comparison.main, "plain-0", "seed, cost, rows"), (digits.main, "plain", "splits")]
)
def test_a_result_that_lacks_its_numbers_is_refused(tmp_path, main, name, missing):
    (tmp_path / f"{name}.json").write_text('{"method": "plain", "settings": {}}')
    with pytest.raises(
        ValueError, match=rf"{name}\.json is not a result of this program \(it lacks {missing}\); delete"
    ):
        main(["--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--methods", "plain,magic"], "methods must be of plain, dropout"),
        (["--draws", "1"], "draws must be a finite number of at least 2"),
        (["--dropout", "1"], "dropout must be a finite number from 0 to 0.99"),
        (["--data", "letters"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(option, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        comparison.main([*option, "--out", str(tmp_path / "new")])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_network_is_that_of_the_documentation():
    model = networks.cnn((1, 28, 28), 10)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [model[6].in_features, model[6].out_features, model[8].out_features] == [6272, 64, 10]
    linear = [(each.in_features, each.out_features) for each in networks.mlp((1, 28, 28), 10) if hasattr(each, "bias")]
    assert linear == [(784, 400), (400, 400), (400, 10)]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_has_a_score_for_each_class(name):
    model = networks.NETWORKS[name]((3, 8, 8), 7)
    assert model(torch.randn(5, 3, 8, 8)).shape == (5, 7)


def test_noise_is_added_in_training_alone():
    noise, x = networks.GaussianNoise(0.3), torch.full((1000, 1000), 2.0)
    assert torch.equal(noise.eval()(x), x)
    added = noise.train()(x) - x
    assert added.mean().item() == pytest.approx(0, abs=5 * 0.3 / 1000)  # five standard errors of a million
    assert added.std().item() == pytest.approx(0.3, rel=5 / 2**0.5 / 1000)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_noise_of_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match="finite and at least 0"):
        networks.GaussianNoise(scale)


@pytest.mark.filterwarnings("ignore:the posterior has not settled")
def test_the_noisy_network_is_trained_with_noise_and_compared_without(tmp_path):
    options = ["--network", "noisy-mlp", "--methods", "plain,dropout,matrix-normal", "--out", str(tmp_path)]
    runs = comparison.main([*TINY, *options])["runs"]
    assert {row for run in runs.values() for row in run["rows"]} == {
        "plain", "plain + temperature", "MC dropout", "matrix normal", "matrix normal, T = 1"
    }  # fmt: skip
    model = networks.noisy_mlp((1, 8, 8), 10)
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_bins_of_few_images_are_not_in_the_reliability_diagram(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: figures.append(self))
    bins = [[4, 0.1, 1.0], [5, 0.3, 0.4], [0, 0.0, 0.0], [91, 0.9, 0.8]]  # images, confidence, accuracy
    run = {"title": "digits", "rows": {"plain": {"reliability": bins}}}
    shift_plots.reliability_figure(tmp_path / "out.png", [run])
    panel = figures[0].axes[0]
    (points,) = (each for each in panel.collections if len(each.get_offsets()))
    np.testing.assert_allclose(points.get_offsets(), [[0.3, 0.4], [0.9, 0.8]])
    small, large = points.get_sizes()
    assert large > 10 * small  # of 5 and 91 images
    assert "fewer than 5 images are left out" in figures[0].legends[0].get_title().get_text()
