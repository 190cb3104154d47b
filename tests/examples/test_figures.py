"""Every figure of the repository can be drawn again from its JSON."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import figures

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "figures").glob("*/result.json"))
PARTIAL = ("copying", "speech", "video")  # parts of their figures are drawn from files that are not kept here


@pytest.fixture
def runs(tmp_path):
    """A folder with a run of every kind: of sparse networks the first three of a task, of pixels one."""
    sparse = [path for path in RUNS if "sparsity" in json.loads(path.read_text())]
    first = [path for path in sparse if path.parent.name.startswith("mnist-")][:3]
    pixels = [path for path in RUNS if path.parent.name.startswith("pixel-")]  # beside "pixel"
    chosen = sorted({*RUNS} - {*sparse} - {*pixels} | {*first})
    for path in chosen:
        shutil.copytree(path.parent, tmp_path / "runs" / path.parent.name)
    return chosen


@pytest.mark.slow
def test_figures_are_drawn_again(tmp_path, runs):
    drawn = figures.main(["--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert [path.parent.name for path in drawn[: len(runs)]] == [path.parent.name for path in runs]
    tables = [path for path in drawn if path.suffix == ".md"]
    assert tables
    assert all("dropped %" in path.read_text() for path in tables)
    assert sum(path.name.startswith("pareto") for path in drawn) >= 1
    for path in drawn:
        if path in tables:
            continue
        with Image.open(path) as image:
            assert min(image.size) >= 500
            kept = ROOT / "figures" / path.parent.name / path.name
            if kept.exists() and path.parent.name not in PARTIAL:
                with Image.open(kept) as other:
                    assert image.size == other.size
            assert np.asarray(image.convert("L")).std() > 10  # there are curves in it


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no folder with a result\.json"):
        figures.main(["--folder", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
