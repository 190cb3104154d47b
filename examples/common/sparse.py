"""The trainings of examples/sparsify.py: a plain network that is kept, a Bayesian one, and what is left of either."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

import mnvi
from examples.baselines.magnitude import Magnitude, layers
from examples.common import checkpoints, results
from examples.common.augmentation import transform
from examples.common.batch_norms import use_mean_statistics_
from examples.common.data import Data
from examples.common.epochs import Batches, Tally, cross_entropy, fall, shuffled, train_epochs
from examples.common.families import POSTERIORS, PRIORS
from examples.common.networks import build
from examples.common.plain import Plan, train_plain, zeros_kept
from examples.common.pruning import narrow_, pruned, search, unit_counts
from mnvi.sparsity import Thresholds

if TYPE_CHECKING:
    from examples.sparsify import Settings

# What the plain network depends on, beside its plan.
NETWORK = ("model", "width", "batch_norm", "validation")
AT_HOLD = "groups", "hold_tolerance", "units"
AFTER_TRAINING = ("threads", "device", "threshold", "tolerance", "finetune", "samples", "plain", "out", "restart")


def plain_network(data: Data, settings: "Settings") -> nn.Module:
    """The trained plain network of these images, from the folder ``--plain`` or trained now and kept there."""
    network = build_plain(data, settings)
    _check_units(network, settings)
    plan, fixed = plain_plan(settings), {name: getattr(settings, name) for name in NETWORK}
    kind = {**fixed, **asdict(plan), "training images": len(data.train_x)}
    key = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:12]
    with checkpoints.alone(Path(settings.plain, f"{settings.data}-{settings.model}-{key}"), wait=True) as folder:
        train_plain(folder / "checkpoint.pt", network, data, plan, fixed, title="plain network, ")
    return network.eval()


def _check_units(network: nn.Module, settings: "Settings") -> None:
    counts, hidden = unit_counts(settings.units), len(layers(network)) - 1
    if counts and len(counts) != hidden:
        raise ValueError(f"units must be {hidden} numbers, one for each hidden layer of {settings.model}, got {counts}")


def build_plain(data: Data, settings: "Settings") -> nn.Module:
    """The network with the initial weights of this seed."""
    torch.manual_seed(settings.seed)
    sizes = {"width": settings.width, "batch_norm": settings.batch_norm}
    return build(settings.model, data.shape, data.classes, **sizes).to(data.train_x.device)


def plain_plan(settings: "Settings") -> Plan:
    """How the plain network is trained."""
    options = {"augment": settings.augment, "noise": settings.noise, "precision": settings.precision}
    return Plan(settings.data, settings.plain_epochs, settings.lr, settings.batch_size, settings.seed, **options)


def by_magnitude(
    plain: nn.Module, data: Data, held: Sequence[Tensor], settings: "Settings", folder: Path
) -> results.Run:
    """Gradual magnitude pruning, for as many epochs as the Bayesian network's and the fine-tuning take."""
    network, epochs = copy.deepcopy(plain), settings.epochs + settings.finetune
    plan = replace(plain_plan(settings), epochs=epochs)
    schedule = Magnitude(network, settings.left or 1, epochs, units=settings.groups in ("rows", "both"))
    fixed = {name: getattr(settings, name) for name in (*NETWORK, "left", "groups", "plain_epochs")}
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


def bayesian_network(plain: nn.Module, data: Data, settings: "Settings") -> mnvi.Sequential:
    """The network with posteriors, and the weights that the plain one had at first or has now."""
    options = {"posterior": POSTERIORS[settings.posterior], "prior": PRIORS[settings.prior]}
    kinds = partial(mnvi.MNLinear, **options), partial(mnvi.MNConv2d, **options, estimator=settings.estimator)
    sizes = {"width": settings.width, "batch_norm": settings.batch_norm}
    weights = (plain if settings.start == "plain" else build_plain(data, settings)).state_dict()
    model = build(settings.model, data.shape, data.classes, *kinds, **sizes).to(data.train_x.device)
    model.load_state_dict(weights, strict=False)
    return model


def train_bayesian(
    model: mnvi.Sequential, data: Data, held: Sequence[Tensor], settings: "Settings", checkpoint: Path
) -> dict:
    """Train by the ELBO, from the checkpoint if there is one; returns history and seconds."""
    num_train = len(data.train_x)
    order, images = (
        shuffled(num_train, settings.batch_size, settings.seed),
        transform(settings.data, settings.augment, settings.noise),
    )
    total = settings.epochs * len(order(0))
    warmup = round(settings.warmup * total)
    elbo = mnvi.ELBO(round(num_train / settings.kl_weight), mnvi.KLWarmup(warmup) if warmup else 1.0)
    ratios = {"log_diagonals": settings.log_diagonals, "off_diagonals": settings.off_diagonals}
    optimizer = torch.optim.Adam(mnvi.parameter_groups(model, settings.lr, **ratios), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: fall(step / total, settings.decay))

    middle, holds = round(settings.hold * settings.epochs), []

    def chosen() -> Thresholds | None:
        use_mean_statistics_(model, data.train_x)
        if settings.units:
            narrow_(model, unit_counts(settings.units))
            return None  # zeros are all that is held
        return search(model, settings.groups, held, settings.hold_tolerance)

    def epoch(i: int, batches: Batches, bar: tqdm) -> dict:
        if i >= middle and not holds:  # after a kill what is zero is held again
            holds.append(mnvi.sparsity.hold(model, chosen() if i == middle else None))
        model.train()
        tally = Tally(bar)
        for batch in batches:
            y = data.train_y[batch]
            nll, logits = cross_entropy(model, images(data.train_x[batch]), y, settings.precision)
            loss, nll, kl = elbo(nll, model)  # nll + weight * model.kl() / num_train, weight from 0 to kl_weight
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tally.add(loss, nll, kl, logits, y)
        return tally.record(num_train) | results.progress(model, data)

    parts = {"model": model, "elbo": elbo, "optimiser": optimizer, "schedule": schedule}
    later = (*AFTER_TRAINING, *(AT_HOLD if middle >= settings.epochs else ()))
    fixed = {name: value for name, value in asdict(settings).items() if name not in later}
    fixed["training images"] = num_train
    try:
        return train_epochs(checkpoint, parts, fixed, order, settings.epochs, epoch, restart=settings.restart)
    finally:
        for each in holds:
            each.release()


def finetuned(small: nn.Module, data: Data, settings: "Settings", folder: Path) -> nn.Module:
    """``small`` after more epochs of plain training, in which its zeros stay zeros."""
    plan = replace(plain_plan(settings), epochs=settings.finetune, lr=settings.lr / 2, decay=1.0)
    masks = zeros_kept(small)
    left = [int(mask.sum()) for mask in masks.values()]
    path = folder / f"finetune-{sum(left)}.pt"  # of a killed run, which may have pruned less
    train_plain(path, small, data, plan, {"left": left}, masks=lambda _: masks, title="fine-tuning, ")
    for path in folder.glob("finetune-*.pt"):
        path.unlink()
    return small.eval()
