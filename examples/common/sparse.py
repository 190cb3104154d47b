"""The trainings of examples/sparsify.py: a plain network that is kept, a Bayesian one, and what is left of either."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

import mnvi
from examples.baselines.magnitude import Magnitude, layers
from examples.common import checkpoints, results
from examples.common.batch_norms import use_mean_statistics_
from examples.common.bayesian import bayesian_network, build_plain, train_bayesian, trained_with
from examples.common.data import Data
from examples.common.plain import Plan, train_plain, trained_as, weights_left
from examples.common.pruning import pruned, search, unit_counts

if TYPE_CHECKING:
    from examples.sparsify import Settings

# What the plain network depends on, beside its plan.
NETWORK = ("model", "width", "batch_norm", "validation")


def plain_network(data: Data, settings: "Settings") -> nn.Module:
    """The trained plain network of these images, from the folder ``--plain`` or trained now and kept there."""
    network = build_plain(data, settings)
    _check_sizes(network, settings)
    plan, fixed = plain_plan(settings), {name: getattr(settings, name) for name in NETWORK}
    kind = {**fixed, **asdict(plan), "training images": len(data.train_x)}
    key = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:12]
    with checkpoints.alone(Path(settings.plain, f"{settings.data}-{settings.model}-{key}"), wait=True) as folder:
        try:
            train_plain(folder / "checkpoint.pt", network, data, plan, fixed, title="plain network, ")
        except ValueError as error:
            advice = "delete that folder, or give another --plain"
            raise ValueError(str(error).replace(checkpoints.RESTART, advice)) from error
    return network.eval()


def check_folder(data: Data, settings: "Settings", folder: Path) -> None:
    """Raise where the folder has another run's checkpoint, before anything is trained."""
    if settings.restart:
        return
    num_train = len(data.train_x)
    bayes = settings.method == "bayes"
    fixed = trained_with(settings, num_train) if bayes else trained_as(*_magnitude(settings), num_train)
    checkpoints.read(folder / "checkpoint.pt", fixed)


def _magnitude(settings: "Settings") -> tuple[Plan, dict]:
    """How magnitude pruning trains, and what else its result depends on."""
    plan = replace(plain_plan(settings), epochs=settings.epochs + settings.finetune)
    return plan, {name: getattr(settings, name) for name in (*NETWORK, "left", "groups", "plain_epochs")}


def _check_sizes(network: nn.Module, settings: "Settings") -> None:
    counts, hidden = unit_counts(settings.units), len(layers(network)) - 1
    if settings.left and settings.left >= (weights := weights_left(network)):
        raise ValueError(f"left must be less than the {weights:,} weights of {settings.model}, got {settings.left:,}")
    if counts and len(counts) != hidden:
        raise ValueError(f"units must be {hidden} numbers, one for each hidden layer of {settings.model}, got {counts}")


def plain_plan(settings: "Settings") -> Plan:
    """How the plain network is trained."""
    options = {"augment": settings.augment, "noise": settings.noise, "precision": settings.precision}
    return Plan(settings.data, settings.plain_epochs, settings.lr, settings.batch_size, settings.seed, **options)


def by_magnitude(
    plain: nn.Module, data: Data, held: Sequence[Tensor], settings: "Settings", folder: Path
) -> results.Run:
    """Gradual magnitude pruning, for as many epochs as the Bayesian network's and the fine-tuning take."""
    network = copy.deepcopy(plain)
    plan, fixed = _magnitude(settings)
    schedule = Magnitude(network, settings.left or 1, plan.epochs, units=settings.groups == "rows")
    path = folder / "checkpoint.pt"
    progress = train_plain(path, network, data, plan, fixed, masks=schedule.masks, restart=settings.restart)
    stages = {"plain network": plain, "pruned": network.eval(), "compacted": mnvi.sparsity.compact(network)}
    return results.Run(progress, stages)


def by_posterior(
    plain: nn.Module, data: Data, held: Sequence[Tensor], settings: "Settings", folder: Path
) -> results.Run:
    """A Bayesian network, pruned as far as held-out images allow, compacted and trained a little more."""
    model = bayesian_network(plain, data, settings)
    progress = train_bayesian(model, data, held, settings, folder / "checkpoint.pt")
    use_mean_statistics_(model, data.train_x)
    threshold = settings.threshold
    if threshold is None:
        threshold = search(model, settings.groups, held, settings.tolerance)
    sparse = pruned(model, settings.groups, threshold)
    use_mean_statistics_(sparse, data.train_x)
    small = mnvi.sparsity.compact(sparse)
    stages = {"plain network": plain, "mean weights": model, "pruned": sparse, "compacted": small}
    if settings.finetune:
        stages["fine-tuned"] = finetuned(copy.deepcopy(small), data, settings, folder)
    return results.Run(progress, stages, threshold)


def finetuned(small: nn.Module, data: Data, settings: "Settings", folder: Path) -> nn.Module:
    """``small`` after more epochs of plain training, in which its zeros stay zeros."""
    plan = replace(plain_plan(settings), epochs=settings.finetune, lr=settings.lr / 2, decay=1.0)
    held, start = mnvi.sparsity.hold(small), _digest(small, plan)
    path = folder / f"finetune-{start}.pt"  # a killed run may have pruned less, or tuned for longer
    try:
        train_plain(path, small, data, plan, {"start": start}, title="fine-tuning, ")
    finally:
        held.release()
    for path in folder.glob("finetune-*.pt"):
        path.unlink()
    return small.eval()


def _digest(network: nn.Module, plan: Plan) -> str:
    """A name of these weights and this training."""
    found = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    for tensor in network.state_dict().values():
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:12]
