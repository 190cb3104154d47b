"""The snippets of the README, one after the other, in one name space as a reader would type them."""

import re
from pathlib import Path

import torch
from torch import nn

import mnvi

README = (Path(mnvi.__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def classes():
    """What a snippet on digits takes as given: a model, a batch, and loaders."""
    x, y = torch.randn(6, 784), torch.arange(6)
    model = mnvi.Sequential(mnvi.MNLinear(784, 5), nn.ReLU(), mnvi.MNLinear(5, 10))
    return {"model": model, "x": x, "y": y, "batches": [(x, y)] * 2, "num_train": 60_000, "x_test": x}


def numbers():
    """What a snippet on a regression takes as given."""
    x, y = torch.randn(6, 8), torch.randn(6, 1)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "batches": [(x, y)] * 2}


def sequences():
    return {"x": torch.randn(5, 3, 1)}


GIVEN = {"y_train": numbers, "rnn(x)": sequences}  # by a word of the snippet; for the others, classes


def given(snippet):
    return next((data for word, data in GIVEN.items() if word in snippet), classes)()


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, snippet in enumerate(SNIPPETS):
        names |= given(snippet)
        exec(compile(snippet, f"README.md, snippet {number + 1}", "exec"), names)
    assert len(SNIPPETS) >= 9
    assert (tmp_path / "small.pt").exists()
