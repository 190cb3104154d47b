"""What came out of a run: measured, printed, written."""

import math
from dataclasses import asdict
from pathlib import Path

from torch import nn

from examples.common import checkpoints, metrics, plots
from examples.common.data import Data
from examples.common.networks import save_compact
from examples.common.pruning import THRESHOLDS, weights_left
from mnvi.sparsity import Thresholds, report


def describe(settings: dict, data: Data, progress: dict, threshold: float | Thresholds, sparse: nn.Module) -> dict:
    """What was done; of the weights "left" in the history, those at the one threshold that now leaves most nearly
    as many as the network has that was pruned by ``threshold``.
    """
    history, groups, left = progress["history"], settings["groups"], report(sparse).left
    nearest = min(range(len(THRESHOLDS)), key=lambda k: abs(history[-1]["left"][groups][k] - left))
    sizes = {"train": len(data.train_x), "test": len(data.test_x), "shape": list(data.shape)}
    return {
        "settings": settings,
        "versions": checkpoints.versions(),
        "data": {"title": data.title, **sizes},
        "threshold": _as_json(threshold),
        "history": [{**epoch, "left": epoch["left"][groups][nearest]} for epoch in history],
        "train_seconds": progress["seconds"],
    }


def _as_json(threshold: float | Thresholds) -> float | dict:
    if not isinstance(threshold, Thresholds):
        return threshold
    found = asdict(threshold)
    return {**found, "layers": list(found["layers"]), "score": threshold.score.__name__}  # type: ignore[attr-defined]


def compare(model: nn.Module, plain: nn.Module, data: Data) -> dict:
    """Test accuracies of both networks after an epoch, and the weights that each threshold would leave."""
    accuracies = [metrics.accuracy(metrics.probabilities(each, data.test_x), data.test_y) for each in (model, plain)]
    return {"accuracy": accuracies[0], "plain_accuracy": accuracies[1], "left": weights_left(model)}


def measure(stages: dict[str, nn.Module], data: Data, samples: int) -> dict:
    """Quality, sparsity, size and speed, on the test images.

    Args:
        stages: "plain network", "mean weights" (the Bayesian network), "pruned", "compacted", "fine-tuned".
        samples: number of draws for the prediction "sampled".
    """
    x, y = data.test_x, data.test_y
    probs = {name: metrics.probabilities(network, x) for name, network in stages.items()}
    probs["sampled"] = metrics.sampled_probabilities(stages["mean weights"], x, samples)
    ends = {"plain": stages["plain network"], "compacted": stages["compacted"]}
    return {
        "metrics": {name: metrics.evaluate(probs[name], y) for name in sorted(probs, key=ORDER.index)},
        "compacted_equals_pruned_within": (probs["compacted"] - probs["pruned"]).abs().max().item(),
        "sparsity": report(stages["pruned"]).to_dict(),
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in ends.items()},
        "latency_ms": {
            f"batch {size}": {name: metrics.latency(network, x[:size]) for name, network in ends.items()}
            for size in (128, 1)
        },
    }


ORDER = ("plain network", "mean weights", "sampled", "pruned", "compacted", "fine-tuned")


def summary(result: dict, sparse: nn.Module) -> str:
    """The numbers of ``result`` as text; masked sparsity, parameters and speed are three different things."""
    settings, size = result["settings"], result["parameters"]
    rows = [f"{'':13}  accuracy %     NLL  ECE %"]
    for name, row in result["metrics"].items():
        rows.append(f"{name:13} {row['accuracy']:11.2f} {row['nll']:7.4f} {row['ece']:6.2f}")
    rows += ["", f"pruned: {_rule(settings['groups'], result['threshold'])}", str(report(sparse)), ""]
    compression = result["sparsity"]["compression"] or math.inf
    rows.append(f"masked sparsity  {compression:.1f}x fewer weights that are not zero")
    smaller = f"{size['plain'] / size['compacted']:.1f}x fewer"
    rows.append(f"parameters       {smaller} after compaction: {size['plain']:,} -> {size['compacted']:,}")
    for batch, times in result["latency_ms"].items():
        change = f"{times['plain']:.3f} -> {times['compacted']:.3f} ms ({batch}, {settings['threads']} threads, median)"
        rows.append(f"latency          {times['plain'] / times['compacted']:.1f}x faster after compaction: {change}")
    return "\n".join(rows)


def _rule(groups: str, threshold: float | dict) -> str:
    """What was pruned, in words."""
    if not isinstance(threshold, dict):
        return f"{groups} with a signal-to-noise ratio below {threshold:.3g}"
    errors = " -> ".join(f"{threshold[name]:.2f} %" for name in ("before", "after"))
    rows = [f"{each['groups']} of layer {each['name']} below {each['threshold']:.3g}" for each in threshold["layers"]]
    return f"held-out error {errors}; by signal-to-noise ratio " + ", ".join(rows)


def write(folder: Path, result: dict, stages: dict[str, nn.Module]) -> None:
    """``compact.pt``, ``training.png``, ``weights.png`` and, last, ``result.json``."""
    heading = title(result)
    checkpoints.write(folder / "compact.pt", lambda path: save_compact(stages["fine-tuned"], path))
    checkpoints.write(folder / "training.png", lambda path: plots.training_figure(path, heading, result))
    plain, pruned = _matrices(stages["plain network"]), _matrices(stages["pruned"])
    checkpoints.write(folder / "weights.png", lambda path: plots.weights_figure(path, heading, plain, pruned))
    checkpoints.write_json(folder / "result.json", result)


def title(result: dict) -> str:
    """The heading of a run's figures."""
    settings, names = result["settings"], {"mlp": "MLP", "lenet5": "LeNet-5", "vgg": "VGG-like"}
    model, posterior, prior = (settings[key] for key in ("model", "posterior", "prior"))
    words = {"mn": "matrix-normal", "mn+diagonal": "matrix-normal + diagonal", "ard": "ARD", "group-ard": "group-ARD"}
    acronyms = [words.get(word, word) for word in (posterior, prior)]
    return "{}, {}, {} posterior, {} prior".format(result["data"]["title"], names[model], *acronyms)


def _matrices(model: nn.Module) -> dict:
    """The (mean) weight matrices by layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    return {name: layer.weight.detach().flatten(1) for name, layer in layers.items()}
