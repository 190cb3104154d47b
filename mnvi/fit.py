"""The trainer: a posterior, or many at once, from data and a likelihood; held-out data choose the weight of the KL."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ._checks import number, positive_float, positive_int
from ._data_sizes import warn_of_sizes
from ._fitting.data_forms import examples
from ._fitting.examples import TensorExamples
from ._fitting.history import History
from ._fitting.job import Job
from ._fitting.likelihoods import likelihoods
from ._fitting.models import Objective, check_likelihood_apart, checked_device, checked_models, modes_kept
from ._fitting.random_state import checked_seed, own_random_numbers
from ._fitting.trial import Plan
from ._models.trained_likelihoods import remember_likelihood, trained_likelihood
from .likelihoods import Likelihood
from .module import with_posterior

KL_WEIGHTS = (1.0, 0.1, 0.03, 0.01)  # to choose from
STEPS = 1000  # about so many are taken where the number of epochs is not given,
REAL_STEPS = 10_000  # and of real targets, which give a gradient to the end, so many
BATCH_SIZE = 128
SEEN = (
    "the model has been fitted before: if its data then had examples that are held out now, these say neither which "
    "weight of the KL predicts best nor how wide the noise is; give validation=(x, y) of others, or fit anew"
)


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
            list or ``nn.ModuleList``, train together in one ``vmap``: an ensemble, seeds, splits; this takes much less
            time than one by one where they are small. What they have beside parameters and buffers must be equal.
        data: a pair (inputs, targets) of tensors, a Dataset, or a DataLoader, of which dataset, batch size, collation
            and workers are used. Inputs may be a tuple or dict of tensors, and a Dataset's items dicts with
            ``"labels"``. For several models also a list of pairs of equal shapes, one for each. The data may lie on
            another device than the model.
        likelihood: an object of :mod:`mnvi.likelihoods`, trained in place, or its short name: ``"categorical"``,
            ``"bernoulli"``, ``"poisson"``, and, with targets standardised and a learnt scale, ``"gaussian"``,
            ``"student_t"``, ``"heteroscedastic_gaussian"``. Several models train a copy each but the first.
        epochs: passes over the data; several to choose from; by default as many as make 1,000 steps, for
            real targets 10,000, at least 10.
        batch_size: examples a step; by default 128; a DataLoader has its own. A last batch of a single example, which
            batch norm refuses, joins the one before.
        lr: rate of means at the start; for others see :func:`mnvi.parameter_groups`.
        kl_weight: w, or several to choose from; ``None``: 1, 0.1, 0.03, 0.01.
        validation: the share of the data that is held out to choose, or data for that, then all of ``data`` are for
            training. A model that comes with trained weights (:func:`mnvi.to_bayesian`) needs data that it was not
            trained on: others seem better predicted than they are. Where there is nothing to choose, no share is held
            out, and nothing is calibrated without such data; with 0 there must be nothing to choose. Where the draws
            that judge are more than 2²⁶ numbers, models are judged one by one in parts of the held-out examples,
            spread evenly over them, of which the first calibrates.
        draws: of the weights, in each step.
        warmup: share of the steps in which the KL's weight rises from 0.
        calibrate: whether held-out data set the likelihood's scale or temperature; a scale that requires no grad stays.
        seed: of the order of the examples, the noise and what is held out; torch's own random state stays as it is.
            Of several models number k sees the order of examples that it would see alone under ``seed + k``; of a
            Dataset, which is read once for all, they see that of ``seed``.
        checkpoint: a file for what is done, written after an epoch every half minute; the same call goes on from it
            after a kill, to the same result, whatever the model's weights are now (it warns if they are others), and
            returns at once when it had ended.
        device: where to train and leave the model; ``None``: where it is.
        compile: whether to run the model under ``torch.compile``.

    What takes longer than two seconds shows its progress on stderr, with NLL and KL per example. Parameters that
    require no grad stay as they are. All else trains in training mode, whatever mode it came in.

    Returns:
        A :class:`mnvi.History`. Its ``likelihood`` is what ``predict`` takes.

    Raises:
        ValueError, TypeError: an argument or the data do not fit, before anything is changed; or a loss is not finite,
            naming the layers. One model is then as the last finite step has left it.
        OSError: the checkpoint cannot be written.
        RuntimeError: inside ``torch.inference_mode()``.

    Warns:
        UserWarning: the posterior has not settled at the end; held-out data would have the noise more than eight times
            wider or narrower; inputs or targets are far from the size 1; a model that was fitted before holds out data
            that it may have seen.

    Example:
        >>> history = mnvi.fit(model, (x, y), "gaussian")
        >>> prediction = mnvi.predict(model, x_test, 64, history.likelihood)
        >>> history.kl_weight, history.settled, history.records[-1]["nll"]
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("nothing can be trained inside torch.inference_mode(); call mnvi.fit outside")
    models = checked_models(model)
    place = checked_device(device, models[0])
    found = examples("data", data, len(models))
    held = None if isinstance(validation, Real) else examples("validation", validation, len(models))
    share = number("validation", validation, 0, 1, below=True) if held is None else 0.0
    size = _batch_size(data, batch_size)
    lr, draws, warmup = positive_float("lr", lr), positive_int("draws", draws), number("warmup", warmup, 0, 1)
    plan = Plan(0, size, lr, draws, warmup, checked_seed(seed))
    weights = _several("kl_weight", kl_weight, _kl_weights(models[0]), partial(number, low=0))
    lengths = None if epochs is None else _several("epochs", epochs, (), positive_int)
    check_likelihood_apart(models, likelihood)
    with own_random_numbers(plan.seed, place), torch.enable_grad(), modes_kept(models):
        own = likelihoods(likelihood, found, len(models))
        lengths = lengths or (_epochs(own[0], size, found.size),)
        objectives = [Objective(*each) for each in zip(models, own, strict=True)]
        job = Job(objectives, found, held, share, plan, weights, lengths, calibrate, compile, checkpoint)
        job.check()
        if isinstance(found, TensorExamples):
            first = found.of_model(0)
            assert first.target is not None
            warn_of_sizes((*first.positional, *first.named.values()), first.target, own[0])
        if trained_likelihood(models[0]) is not None and len(job.out) and not job.checkpoint.content:
            warnings.warn(SEEN, stacklevel=2)
        for each in objectives:
            each.to(place)
        history = job.run()
    for each in objectives:
        each.eval()
        each.zero_grad()
        remember_likelihood(each.model, each.likelihood)
    history.warn()
    return history


def _batch_size(data: Any, given: int | None) -> int:
    if not isinstance(data, DataLoader):
        return BATCH_SIZE if given is None else positive_int("batch_size", given)
    if given is not None:
        raise ValueError(f"the DataLoader has a batch_size, {data.batch_size}; got batch_size={given} beside it")
    return data.batch_size or BATCH_SIZE


def _kl_weights(model: nn.Module) -> tuple[float, ...]:
    """Those to choose from; a plain model has no KL to weigh."""
    return KL_WEIGHTS if any(True for _ in with_posterior(model)) else (0.0,)


def _epochs(likelihood: Likelihood, batch_size: int, examples: int) -> int:
    """How many epochs make the steps that this likelihood needs, at least 10."""
    steps = STEPS if likelihood.discrete else REAL_STEPS
    return max(10, round(steps * min(batch_size, examples) / examples))


def _several(name: str, given: Any, default: tuple, check: Callable[[str, Any], Any]) -> tuple:
    """The different values of an argument that is one or several of them."""
    if given is None:
        return default
    values = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not values:
        raise ValueError(f"{name} must be a number or several to choose from, got {given!r}")
    return tuple(dict.fromkeys(check(name, value) for value in values))
