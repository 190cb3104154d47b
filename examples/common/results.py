"""What came out of a run: measured, printed, written."""

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.common import checkpoints, metrics, plots
from examples.common.data import Data
from examples.common.networks import save_compact
from examples.common.pruning import THRESHOLDS, weights_left
from mnvi.sparsity import Thresholds, report


@dataclass
class Run:
    """What a method made: history and seconds, its networks by their stages in order, and the threshold, if it has one.

    Stages are of "plain network", "mean weights" (the Bayesian one), "pruned", "compacted" and "fine-tuned"; the last
    one is the result.
    """

    progress: dict
    stages: dict[str, nn.Module]
    threshold: float | Thresholds | None = None


def describe(settings: dict, data: Data, run: Run) -> dict:
    """What was done. A Bayesian history has the weights "left" by many thresholds; here those of the one threshold that
    now leaves most nearly as many as were left by pruning.
    """
    history, groups = run.progress["history"], settings["groups"]
    if isinstance(history[-1]["left"], dict):
        left = report(run.stages["pruned"]).left
        nearest = min(range(len(THRESHOLDS)), key=lambda k: abs(history[-1]["left"][groups][k] - left))
        history = [{**epoch, "left": epoch["left"][groups][nearest]} for epoch in history]
    sizes = {"train": len(data.train_x), "test": len(data.test_x), "shape": list(data.shape)}
    return {
        "settings": settings,
        "versions": checkpoints.versions(),
        "data": {"title": data.title, **sizes},
        "threshold": _as_json(run.threshold),
        "history": history,
        "train_seconds": run.progress["seconds"],
    }


def _as_json(threshold: float | Thresholds | None) -> float | dict | None:
    if not isinstance(threshold, Thresholds):
        return threshold
    found = asdict(threshold)
    return {**found, "layers": list(found["layers"]), "score": threshold.score.__name__}  # type: ignore[attr-defined]


def progress(model: nn.Module, data: Data) -> dict:
    """Test accuracy of a Bayesian network after an epoch, and the weights that each threshold would leave."""
    accuracy = metrics.accuracy(metrics.probabilities(model, data.test_x), data.test_y)
    return {"accuracy": accuracy, "left": weights_left(model)}


def measure(run: Run, data: Data, held: Sequence[Tensor], samples: int) -> dict:
    """Quality, sparsity, size and speed, on the test images; ``samples`` draws for the prediction "sampled".

    It is underconfident where draws disagree: each is calibrated, their mean is right more often and less sure. The
    ``held``-out images and labels say at which temperature of every draw it is not, "tempered".
    """
    stages, x, y = run.stages, data.test_x, data.test_y
    probs = {name: metrics.probabilities(network, x) for name, network in stages.items()}
    temperature = None
    if "mean weights" in stages:
        logits = metrics.sampled_logits(stages["mean weights"], torch.cat([held[0], x]), samples, data.train_x)
        before, logits = logits[:, : len(held[0])], logits[:, len(held[0]) :]
        temperature = metrics.temperature(before, held[1])
        probs |= {"sampled": metrics.mixture(logits), "tempered": metrics.mixture(logits, temperature)}
    ends = {"plain": stages["plain network"], "compacted": list(stages.values())[-1]}
    ends, shown = {name: copy.deepcopy(network).cpu() for name, network in ends.items()}, x[:128].cpu()
    return {
        "metrics": {name: metrics.evaluate(probs[name], y) for name in sorted(probs, key=ORDER.index)},
        "temperature": temperature,
        "compacted_equals_pruned_within": (probs["compacted"] - probs["pruned"]).abs().max().item(),
        "sparsity": report(stages["pruned"]).to_dict(),
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in ends.items()},
        "file_bytes": {name: _bytes(network) for name, network in ends.items()},
        "latency_ms": {
            f"batch {size}": {name: metrics.latency(network, shown[:size]) for name, network in ends.items()}
            for size in (128, 1)
        },
    }


ORDER = ("plain network", "mean weights", "sampled", "tempered", "pruned", "compacted", "fine-tuned")


def _bytes(network: nn.Module) -> int:
    """Size of a file with the network's state."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.tell()


def summary(result: dict, sparse: nn.Module) -> str:
    """The numbers of ``result`` as text; masked sparsity, parameters and speed are three different things."""
    settings, size = result["settings"], result["parameters"]
    rows = [f"{'':13}  accuracy %     NLL  ECE %"]
    for name, row in result["metrics"].items():
        rows.append(f"{name:13} {row['accuracy']:11.2f} {row['nll']:7.4f} {row['ece']:6.2f}")
    rows += ["", f"pruned: {_rule(settings, result['threshold'])}", str(report(sparse)), ""]
    compression = result["sparsity"]["compression"] or math.inf
    rows.append(f"masked sparsity  {compression:.1f}x fewer weights that are not zero")
    smaller = f"{size['plain'] / size['compacted']:.1f}x fewer"
    rows.append(f"parameters       {smaller} after compaction: {size['plain']:,} -> {size['compacted']:,}")
    kilobytes = {name: value / 1024 for name, value in result["file_bytes"].items()}
    change = f"{kilobytes['plain']:,.0f} -> {kilobytes['compacted']:,.0f} KiB"
    rows.append(f"file             {kilobytes['plain'] / kilobytes['compacted']:.1f}x smaller: {change}")
    for batch, times in result["latency_ms"].items():
        change = f"{times['plain']:.3f} -> {times['compacted']:.3f} ms ({batch}, {settings['threads']} threads, median)"
        rows.append(f"latency          {times['plain'] / times['compacted']:.1f}x faster after compaction: {change}")
    return "\n".join(rows)


def _rule(settings: dict, threshold: float | dict | None) -> str:
    """What was pruned, in words."""
    if threshold is None:
        return f"the smallest {'units' if settings['groups'] != 'weights' else 'weights'}, while training"
    if not isinstance(threshold, dict):
        return f"{settings['groups']} with a signal-to-noise ratio below {threshold:.3g}"
    errors = " -> ".join(f"{threshold[name]:.2f} %" for name in ("before", "after"))
    rows = [f"{each['groups']} of layer {each['name']} below {each['threshold']:.3g}" for each in threshold["layers"]]
    return f"held-out error {errors}; by signal-to-noise ratio " + ", ".join(rows)


def write(folder: Path, result: dict, stages: dict[str, nn.Module]) -> None:
    """``compact.pt``, ``training.png``, ``weights.png`` and, last, ``result.json``."""
    heading, last = title(result), list(stages.values())[-1]
    checkpoints.write(folder / "compact.pt", lambda path: save_compact(last, path))
    checkpoints.write(folder / "training.png", lambda path: plots.training_figure(path, heading, result))
    plain, pruned = _matrices(stages["plain network"]), _matrices(stages["pruned"])
    checkpoints.write(folder / "weights.png", lambda path: plots.weights_figure(path, heading, plain, pruned))
    checkpoints.write_json(folder / "result.json", result)


NAMES = {
    **{"mlp": "MLP", "cnn": "CNN", "lenet5": "LeNet-5", "vgg": "VGG-like"},
    **{"mn": "matrix-normal", "mn+diagonal": "matrix-normal + diagonal", "scaled": "scaled matrix-normal"},
    "corrected": "corrected matrix-normal",
    **{"ard": "ARD", "group-ard": "group-ARD", "channel-ard": "channel-ARD"},
}


def title(result: dict) -> str:
    """The heading of a run's figures."""
    settings = result["settings"]
    wide = f" ×{settings['width']}" if settings.get("width", 1) > 1 else ""
    start = f"{result['data']['title']}, {NAMES[settings['model']]}{wide}"
    if settings.get("method") == "magnitude":
        return f"{start}, magnitude pruning of {settings['groups']}"
    posterior, prior = (NAMES.get(settings[key], settings[key]) for key in ("posterior", "prior"))
    return f"{start}, {posterior} posterior, {prior} prior"


def _matrices(model: nn.Module) -> dict:
    """The (mean) weight matrices by layer."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    return {name: layer.weight.detach().cpu().flatten(1) for name, layer in layers.items()}
