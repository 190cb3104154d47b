"""The Riemannian example: two steps of everything, what its JSON claims, and its bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from examples.papers import riemannian
from examples.papers.step_sizes import Search, pick
from mnvi.manifolds import SPD, Euclidean, Kronecker

ROOT = Path(__file__).parents[2]

TINY = ["--steps", "2", "--seeds", "2", "--trials", "3"]
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_two_steps_of_every_experiment(tmp_path):
    result = riemannian.main([*TINY, "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "riemannian.png"}
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert {name: list(each["methods"]) for name, each in result["experiments"].items()} == {
        "psd": ["gd", "PSD"],
        "kronecker": ["gd", "gd, the same U with ‖X‖ = 1", "Kronecker"],
        "psd-kronecker": ["gd", "PSD", "PSD + Kronecker"],
    }
    for each in result["experiments"].values():
        for row in each["methods"].values():
            assert len(row["curve"]) == 3
            assert math.prod(row["final_by_seed"]) ** (1 / 2) == pytest.approx(row["final"])
            assert all(low <= high for low, high in zip(row["lowest"], row["highest"], strict=True))
        starts = [row["curve"][0] for row in each["methods"].values()]
        assert starts == pytest.approx([starts[0]] * len(starts))  # the same U, however it is written


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--trials", "1"], "trials must be at least 2, got 1"),
        (["--seeds", "many"], "invalid int value: 'many'"),
        (["--speed", "3"], "unrecognized arguments: --speed 3"),
    ],
)
def test_wrong_options_are_refused(option, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        riemannian.main([*option, "--out", str(tmp_path / "new")])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write"):
        riemannian.main([*TINY, "--out", str(tmp_path / "file")])


def test_losses_are_those_of_the_dense_matrices():
    x, t = (Kronecker().random((4, 3), (2, 5), dtype=torch.float64) for _ in range(2))
    dense = (torch.kron(*x) - torch.kron(*t)).square().mean()
    torch.testing.assert_close(riemannian.kronecker(x, t), dense)
    torch.testing.assert_close(riemannian.kronecker(riemannian.unit_norm(x), t), dense)
    a, b = (Kronecker().random(4, 3, dtype=torch.float64) for _ in range(2))
    u, v = (torch.kron(*(each @ each.mT for each in pair)) for pair in (a, b))
    torch.testing.assert_close(riemannian.psd_kronecker(a, b), (u - v).square().mean())


def search(manifold, steps):
    x, t = SPD().random(2, 2, 1, 3, 3, dtype=torch.float64)

    def loss(x, t):
        return (x - t).square().sum((-2, -1))

    return Search(loss, manifold, x, t, steps, tqdm(disable=True)), x, t


def test_the_search_finds_the_step_that_arrives_at_once():
    found, *_ = search(SPD("euclidean"), 1)
    _, rates, ratios = found.best(9)
    assert (rates - 0.5).abs().max() < 0.1  # x − ½·2(x − t) = t, and Polyak's step is half of it
    torch.testing.assert_close(ratios, 2 * rates / 0.5)


def test_a_trial_in_the_batch_is_the_descent_by_itself():
    found, x, t = search(Euclidean(), 5)
    rates = torch.tensor([[0.1, 3.0, 0.5], [0.01, 0.2, 1e9]])
    losses = found.descend(rates)
    assert losses.shape == (6, 2, 3)
    start = (x - t).square().sum((-2, -1))
    for step in range(6):
        growth = (1 - 2 * rates) ** (2 * step)  # each step multiplies x − t by 1 − 2·rate
        expected = start * growth.masked_fill(growth > 1e6, math.inf)
        torch.testing.assert_close(losses[step], expected, atol=1e-15, rtol=1e-9)


def test_the_best_trial_is_the_lowest_or_the_first_to_converge():
    losses = torch.tensor([[[1.0, 1.0, 1.0]], [[0.5, 1e-30, 0.1]], [[0.2, 1e-30, 1e-31]]])
    rate, curve = pick(torch.tensor([[1.0, 2.0, 3.0]]), losses)
    assert rate.tolist() == [2.0]
    assert curve.tolist() == [[1.0, 1e-30, 1e-30]]
    assert pick(torch.tensor([[1.0, 3.0]]), losses[:2, :, ::2])[0].tolist() == [3.0]


def test_the_published_figures_hold_what_the_example_writes():
    result = json.loads((ROOT / "figures" / "riemannian" / "result.json").read_text())
    methods = {name: each["methods"] for name, each in result["experiments"].items()}
    assert methods["psd"]["gd"]["final_over_last_method"] > 20
    assert max(methods["kronecker"]["Kronecker"]["steps_to_1e-11_by_seed"]) <= 500
    assert methods["kronecker"]["gd"]["when_last_method_is_at_1e-11"] > 1e-3
    assert methods["psd-kronecker"]["gd"]["final_over_last_method"] > 10
