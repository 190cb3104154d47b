"""The snippets of the README, one after the other, in one name space as a reader would type them; and a recipe."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import mnvi


def snippets(document):
    text = (Path(mnvi.__file__).parents[1] / document).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SNIPPETS = snippets("README.md")


def classes():
    """What a snippet on digits takes as given: a model, a batch, and loaders."""
    x, y = torch.randn(6, 784), torch.arange(6)
    model = mnvi.Sequential(mnvi.MNLinear(784, 5), nn.ReLU(), mnvi.MNLinear(5, 10))
    return {"model": model, "x": x, "y": y, "batches": [(x, y)] * 2, "num_train": 60_000, "x_test": x}


def training():
    """A whole data set of classes."""
    return {
        **classes(),
        "x_train": torch.randn(40, 784),
        "y_train": torch.arange(40) % 10,
        "build": lambda: classes()["model"],
    }


def pruning():
    """A model half of whose inputs hardly matter, and examples that it gets right, but for every fourth."""
    model, x = classes()["model"], torch.randn(100, 784)
    model[0].weight.data[:, ::2] = 0
    y = model.eval()(x).argmax(1)
    y[::4] = torch.randint(10, (25,))
    return {**classes(), "model": model, "x_held": x, "y_held": y}


def numbers():
    """What a snippet on a regression takes as given."""
    x, y = torch.randn(6, 8), torch.randn(6, 1)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "batches": [(x, y)] * 2}


def sequences():
    return {"x": torch.randn(5, 3, 1)}


GIVEN = {  # by a word of the snippet; for the others, classes
    "mnvi.fit(": training,
    "x_held": pruning,
    "y_train": numbers,
    "rnn(x)": sequences,
}


def given(snippet):
    return next((data for word, data in GIVEN.items() if word in snippet), classes)()


@pytest.mark.filterwarnings("ignore:the posterior has not settled")  # after so few steps
def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["mnvi.fit"], "STEPS", 20)
    names: dict = {}
    for number, snippet in enumerate(SNIPPETS):
        names |= given(snippet)
        exec(compile(snippet, f"README.md, snippet {number + 1}", "exec"), names)
    assert len(SNIPPETS) >= 9
    assert (tmp_path / "small.pt").exists()


def test_the_recipe_leaves_a_tenth_of_the_weights_of_a_network_on_digits():
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x = (x / 16).float()
    ard = {"posterior": mnvi.posteriors.Diagonal(), "prior": mnvi.priors.ARD()}
    model = mnvi.Sequential(mnvi.MNLinear(64, 100, **ard), nn.ReLU(), mnvi.MNLinear(100, 10, **ard))
    parts = (torch.randint(300, len(x), (64,)) for _ in iter(int, 1))
    names = {"mnvi": mnvi, "torch": torch, "F": F, "model": model, "steps": 600, "num_train": len(x) - 300}
    names |= {"x_held": x[:300], "y_held": y[:300], "batches": ((x[part], y[part]) for part in parts)}
    (recipe,) = snippets("docs/sparse.md")
    exec(compile(recipe, "docs/sparse.md", "exec"), names)
    assert sum(int((weight != 0).sum()) for weight in names["small"].parameters()) < 740
    assert (names["small"](x[:300]).argmax(1) == y[:300]).float().mean() > 0.85
