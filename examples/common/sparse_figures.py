"""What several runs of examples/sparsify.py show together: quality against what is left, families side by side."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from examples.common.plots import PLAIN
from examples.common.results import NAMES

COLORS = {"diagonal": "#c23b22", "mn": "#1f5fa8", "mn+diagonal": "#2a8a4a", "scaled": "#8a4fb0"}
COLORS |= {"corrected": "#0f8f8f", "magnitude": "#d08a00"}
MARKERS = {"normal": "v", "ard": "o", "group-ard": "s", "channel-ard": "P", "hierarchical": "D", "magnitude": "X"}


def task(result: dict) -> str:
    """What runs have to have in common to be compared, as the heading of a figure."""
    settings = result["settings"]
    wide = f" ×{settings.get('width', 1)}" if settings.get("width", 1) > 1 else ""
    options = [name.replace("_", " ") for name in ("batch_norm", "augment") if settings.get(name)]
    return ", ".join([f"{result['data']['title']}, {NAMES[settings['model']]}{wide}", *options])


def method(result: dict) -> str:
    """A run's family, or its other method."""
    return "magnitude" if is_magnitude(result) else result["settings"]["posterior"]


def is_magnitude(result: dict) -> bool:
    return result["settings"].get("method") == "magnitude"


def label(result: dict) -> str:
    """How a legend calls a run."""
    settings = result["settings"]
    groups = "" if settings["groups"] == "weights" else f", {settings['groups']}"
    if is_magnitude(result):
        return f"magnitude{groups}"
    return f"{settings['posterior']}, {settings['prior']}{groups}"


def final(result: dict) -> dict[str, float]:
    """Accuracy, NLL and calibration error of the network that a run ends with."""
    return list(result["metrics"].values())[-1]


def pareto_figure(path: Path, results: Sequence[dict]) -> None:
    """Test accuracy, NLL and calibration error against weights left, and accuracy against latency."""
    figure = Figure(figsize=(15, 4.2), dpi=150, layout="constrained")
    figure.suptitle(task(results[0]), fontsize=13)
    panels = figure.subplots(1, 4)
    names = {"accuracy": "test accuracy, %", "nll": "test NLL, nats", "ece": "calibration error, %"}
    left = [result["sparsity"]["total"]["left"] for result in results]
    for axes, (key, title) in zip(panels, names.items(), strict=False):
        _points(axes, results, left, key)
        axes.set(title=title, xlabel="weights that are not zero")
    times = [result["latency_ms"]["batch 128"]["compacted"] for result in results]
    _points(panels[3], results, times, "accuracy")
    panels[3].set(title="test accuracy, %", xlabel="ms for 128 images, compacted")
    for axes, values in zip(panels, (left, left, left, times), strict=True):
        if max(values) > 5 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(path)


def _points(axes: Axes, results: Sequence[dict], x: Sequence[float], key: str) -> None:
    seen: set[str] = set()
    for result, value in zip(results, x, strict=True):
        name, kind = label(result), method(result)
        marker = MARKERS["magnitude" if is_magnitude(result) else result["settings"]["prior"]]
        style: dict[str, Any] = {"color": COLORS[kind], "marker": marker, "ms": 8, "ls": "", "alpha": 0.85}
        filled: dict[str, Any] = {} if result["settings"]["groups"] == "weights" else {"mfc": "white"}
        axes.plot(value, final(result)[key], label=None if name in seen else name, **style, **filled)
        seen.add(name)
    plain = [result["metrics"]["plain network"][key] for result in results]
    axes.axhline(sum(plain) / len(plain), color=PLAIN, ls="--", label="plain network, all weights")


def families_figure(path: Path, results: Sequence[dict]) -> None:
    """Test accuracy and −ELBO over the training of Bayesian networks that differ in their family."""
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    prior = NAMES.get(results[0]["settings"]["prior"], results[0]["settings"]["prior"])
    figure.suptitle(f"{task(results[0])}, {prior} prior", fontsize=13)
    panels = figure.subplots(1, 2)
    titles = {"accuracy": "test accuracy at the mean weights, %", "neg_elbo": "−ELBO, nats per training image"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for result in results:
            values = [epoch[key] for epoch in result["history"]]
            name, digits = NAMES.get(method(result), method(result)), 2 if key == "accuracy" else 3
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=COLORS[method(result)],
                label=f"{name}: {values[-1]:.{digits}f}",
            )
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[1].yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path)


def together(results: Sequence[dict]) -> dict[str, Callable[[Path], object]]:
    """What draws each figure or table of several runs, by the name of its file."""
    made: dict[str, Callable[[Path], object]] = {}
    for name, runs in _by(results, lambda result: (task(result),)).items():
        if len(runs) > 1:
            made[f"pareto-{name}.png"] = lambda path, runs=runs: pareto_figure(path, runs)
    bayesian = [result for result in results if not is_magnitude(result)]
    for name, runs in _by(bayesian, lambda result: (task(result), result["settings"]["prior"])).items():
        if len({method(result) for result in runs}) > 1:
            made[f"families-{name}.png"] = lambda path, runs=runs: families_figure(path, runs)
            made[f"layers-{name}.md"] = lambda path, runs=runs: path.write_text(layers_table(runs) + "\n")
    return made


def _by(results: Sequence[dict], key: Callable[[dict], tuple[str, ...]]) -> dict[str, list[dict]]:
    """The runs that have ``key`` in common, by a name made of it."""
    found: dict[str, list[dict]] = {}
    for result in results:
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(key(result)).lower().replace("×", "x"))
        found.setdefault(name.strip("-"), []).append(result)
    return found


def layers_table(results: Sequence[dict]) -> str:
    """Of every layer all weights, those left and the percentage dropped, as the slides have it, in Markdown."""
    names = [layer["name"] for layer in results[0]["sparsity"]["layers"]]
    rows = ["| | | " + " | ".join(f"layer {name}" for name in names) + " | all |"]
    rows.append("|---|---|" + "---|" * (len(names) + 1))
    for result in results:
        layers = [*result["sparsity"]["layers"], result["sparsity"]["total"]]
        counts = {"all": "weights", "left": "left"}
        for name, key in counts.items():
            rows.append(f"| {label(result)} | {name} | " + " | ".join(f"{layer[key]:,}" for layer in layers) + " |")
        dropped = (f"{layer['dropped']:.0f}" for layer in layers)
        rows.append(f"| | dropped % | {' | '.join(dropped)} |")
    return "\n".join(rows)
