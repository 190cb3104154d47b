"""The networks of examples/sparsify.py before their training, and the training of the Bayesian one."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

import mnvi
from examples.common import results
from examples.common.augmentation import transform
from examples.common.batch_norms import use_mean_statistics_
from examples.common.data import Data
from examples.common.epochs import Batches, Tally, cross_entropy, fall, shuffled, train_epochs
from examples.common.families import POSTERIORS, PRIORS
from examples.common.networks import build
from examples.common.pruning import narrow_, search, unit_counts
from mnvi.sparsity import Thresholds

if TYPE_CHECKING:
    from examples.sparsify import Settings

AT_HOLD = "groups", "hold_tolerance", "units"
AFTER_TRAINING = ("threads", "device", "threshold", "tolerance", "finetune", "samples", "plain", "out", "restart")


def build_plain(data: Data, settings: "Settings") -> nn.Module:
    """The network with the initial weights of this seed."""
    torch.manual_seed(settings.seed)
    sizes = {"width": settings.width, "batch_norm": settings.batch_norm}
    return build(settings.model, data.shape, data.classes, **sizes).to(data.train_x.device)


def bayesian_network(plain: nn.Module, data: Data, settings: "Settings") -> mnvi.Sequential:
    """The network with posteriors, and the weights that the plain one had at first or has now."""
    options = {"posterior": POSTERIORS[settings.posterior], "prior": PRIORS[settings.prior]}
    kinds = partial(mnvi.MNLinear, **options), partial(mnvi.MNConv2d, **options, estimator=settings.estimator)
    sizes = {"width": settings.width, "batch_norm": settings.batch_norm}
    weights = (plain if settings.start == "plain" else build_plain(data, settings)).state_dict()
    model = build(settings.model, data.shape, data.classes, *kinds, **sizes).to(data.train_x.device)
    model.load_state_dict(weights, strict=False)
    return model


def hold_epoch(settings: "Settings") -> int:
    """How many epochs come before what can be pruned is held; one at least, unless it is from the start."""
    return max(int(settings.hold > 0), round(settings.hold * settings.epochs))


def trained_with(settings: "Settings", num_train: int) -> dict:
    """What the training of the Bayesian network depends on."""
    later = (*AFTER_TRAINING, *(AT_HOLD if hold_epoch(settings) >= settings.epochs else ()))
    fixed = {name: value for name, value in asdict(settings).items() if name not in later}
    return {**fixed, "training images": num_train}


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

    middle, holds = hold_epoch(settings), []

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
    try:
        fixed = trained_with(settings, num_train)
        return train_epochs(checkpoint, parts, fixed, order, settings.epochs, epoch, restart=settings.restart)
    finally:
        for each in holds:
            each.release()
