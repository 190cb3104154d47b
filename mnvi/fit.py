"""The trainer: a posterior, or many at once, from data and a likelihood; held-out data choose the weight of the KL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ._checks import number, positive_float, positive_int
from ._fitting.examples import examples
from ._fitting.history import History
from ._fitting.job import Job
from ._fitting.likelihoods import likelihoods
from ._fitting.members import Objective
from ._fitting.trial import Plan
from .layers import bayesian_layers
from .likelihoods import Likelihood

KL_WEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01)
STEPS = 2000  # about so many are taken where the number of epochs is not given


def fit(
    model: nn.Module | Sequence[nn.Module],
    data: tuple[Any, torch.Tensor] | Dataset | DataLoader | Sequence[tuple[Any, torch.Tensor]],
    likelihood: Likelihood | str = "categorical",
    *,
    epochs: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    lr: float = 1e-2,
    kl_weight: float | Sequence[float] | None = None,
    validation: float | tuple[Any, torch.Tensor] | Dataset | DataLoader = 0.1,
    draws: int = 1,
    warmup: float = 0.5,
    calibrate: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
) -> History:
    """Train the posteriors of ``model`` on ``data``, in place; it is then in eval mode and ready for ``predict``.

    The loss is NLL + w·KL/N, by Adam with cosine-annealed rates. The weight w of the KL is chosen: 1 is Bayes' rule,
    which underfits where the data are few beside the weights; below 1 the posterior is colder than Bayes' (Wenzel et
    al., 2020, arXiv:2002.02405), and mostly predicts better. A tenth of the data is held out, a copy of the model is
    trained on the rest for each weight, the one under whose mixture of draws the held-out targets are most probable
    wins, and the model is trained on all data with its weight. The likelihood's scale or temperature is set by the
    same held-out data (:meth:`mnvi.likelihoods.Likelihood.calibrate_`).

    Args:
        model: with Bayesian layers (a plain one trains as well, without KL). Several models of one architecture, a
            list, train together in one ``vmap``: an ensemble, seeds, splits; this takes much less time than one by one
            where they are small.
        data: a pair (inputs, targets) of tensors, a Dataset, or a DataLoader, of which dataset, batch size, collation
            and workers are used. Inputs may be a tuple or dict of tensors. For several models also a list of pairs of
            equal shapes, one for each.
        likelihood: an object of :mod:`mnvi.likelihoods`, trained in place, or its short name: ``"categorical"``,
            ``"bernoulli"``, ``"poisson"``, and, with targets standardised and a learnt scale, ``"gaussian"``,
            ``"student_t"``, ``"heteroscedastic_gaussian"``.
        epochs: passes over the data; several to choose from; by default as many as make 4,000 steps, at least 10.
        batch_size: examples a step; by default 128, or that of the DataLoader.
        lr: rate of means at the start; for others see :func:`mnvi.parameter_groups`.
        kl_weight: w, or several to choose from; ``None``: 1, 0.3, 0.1, 0.03, 0.01.
        validation: the share of the data that is held out to choose, or data for that, then all of ``data`` are for
            training. Where there is nothing to choose, no share is held out.
        draws: of the weights, in each step.
        warmup: share of the steps in which the KL's weight rises from 0.
        calibrate: whether held-out data set the likelihood's scale or temperature.
        seed: of the order of the examples, the noise and what is held out; torch's own random state stays as it is.
        checkpoint: a file for what is done, every half minute; the same call goes on from it after a kill, to the same
            result.
        device: where to train and leave the model; ``None``: where it is.
        compile: whether to run the model under ``torch.compile``.

    Returns:
        A :class:`History`. Its ``likelihood`` is what ``predict`` takes.

    Raises:
        ValueError, TypeError: an argument or the data do not fit, before anything is changed; or a loss is not finite.

    Warns:
        UserWarning: the KL has not settled at the end.

    Example:
        >>> history = mnvi.fit(model, (x, y), "gaussian")
        >>> prediction = mnvi.predict(model, x_test, 64, history.likelihood)
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models or not all(isinstance(each, nn.Module) for each in models):
        raise TypeError(f"model must be a torch.nn.Module or a list of them, got {model!r}")
    found = examples(data, len(models))
    held = None if isinstance(validation, (int, float)) else examples(validation, len(models))
    share = number("validation", validation, 0, 1, below=True) if held is None else 0.0
    size = batch_size or (isinstance(data, DataLoader) and data.batch_size) or 128
    plan = Plan(
        epochs=max(10, round(STEPS * min(size, found.size) / found.size)),
        batch_size=positive_int("batch_size", size),
        lr=positive_float("lr", lr),
        draws=positive_int("draws", draws),
        warmup=number("warmup", warmup, 0, 1),
        seed=seed,
    )
    bayesian = next(bayesian_layers(models[0]), None) is not None
    weights = _several(kl_weight, KL_WEIGHTS if bayesian else (0.0,), lambda w: number("kl_weight", w, 0))
    lengths = _several(epochs, (plan.epochs,), lambda n: positive_int("epochs", n))
    objectives = [
        Objective(each, own) for each, own in zip(models, likelihoods(likelihood, found, len(models)), strict=True)
    ]
    for each in objectives:
        each.to(device)
    job = Job(objectives, found, held, share, plan, weights, lengths, calibrate, compile, checkpoint)
    history = History.of(*job.run(), job)
    for each in objectives:
        each.eval()
    history.warn_unless_settled()
    return history


def _several(given: Any, default: tuple, check: Any) -> tuple:
    if given is None:
        return default
    values = given if isinstance(given, (tuple, list)) else (given,)
    if not values:
        raise ValueError("there is nothing to choose from")
    return tuple(check(value) for value in values)
