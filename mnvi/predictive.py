"""The posterior predictive: predictions averaged over the posterior, with their uncertainty split in two."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ._checks import positive_int
from ._draws import Sampler
from ._first_call import refuse_nan
from ._inputs import batches
from ._models.eval_mode import in_eval_mode
from ._models.trained_likelihoods import trained_likelihood
from ._progress import Progress
from .likelihoods import Gaussian, Likelihood, Prediction
from .likelihoods._mixture import Mixture
from .likelihoods.base import Draws, described, first, over
from .likelihoods.short_names import SHORT_NAMES, named
from .module import warn_without_posterior

# The tensors of a prediction that have one value an example.
FIELDS = ("mean", "variance", "predictive_entropy", "expected_entropy", "mutual_information", "target")
FIELDS += ("_target_log_prob",)
REAL = ("gaussian", "heteroscedastic_gaussian")  # short names of real targets


def predict(
    model: nn.Module | Sequence[nn.Module],
    x: Tensor | tuple | Mapping[str, Any] | DataLoader,
    num_samples: int = 32,
    likelihood: Likelihood | str | Sequence[Likelihood] = "categorical",
    *,
    noise_scale: float | Tensor | None = None,
    chunk_size: int | None = None,
    keep_draws: bool = True,
) -> Prediction:
    """The posterior predictive of ``model`` at ``x``, by ``num_samples`` draws in eval mode, without gradients.

    Of several models, an ensemble, it is the mixture of all their draws, ``num_samples`` of each, in equal parts.

    Args:
        model: returns what the likelihood takes, for example logits (N, classes). Or a list of such models, which need
            not be of one architecture.
        x: what the model takes: a tensor, a tuple of its arguments or a dict of its keyword arguments; or a DataLoader,
            whose batches go through the model one by one, on the model's device, and come back to where they lay. Its
            batches are ``x``, ``[x]``, ``[x, target]`` or a dict. ``x`` may itself be a tuple or dict of arguments; a
            target (in a dict what is called ``"labels"``) does not go to the model and is kept in the prediction,
            unless it is no tensor.
        num_samples: number of draws, of each model.
        likelihood: an object of :mod:`mnvi.likelihoods`, or the short name of one without parameters:
            ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, ``"heteroscedastic_gaussian"``, ``"poisson"``. Of
            several models also a list of one object for each, of one kind, as :func:`mnvi.fit` returns them.
        noise_scale: the scale of ``"gaussian"``, as that of ``Gaussian(scale)``; without it that is 0, the noise-free
            function, whose entropy given the weights is −∞ and whose mutual information is ``None``. Not what
            ``mnvi.fit(…, "gaussian")`` learns, which is ``history.likelihood``.
        chunk_size: draw this many at a time, to bound memory; ``None``: as many as hold about 2²⁶ numbers, 256 MiB in
            float32. Another chunk size gives other draws from the same seed.
        keep_draws: whether to keep the draws, S times the outputs, for ``log_prob`` and ``sample`` of the prediction.
            Without them memory does not grow with S, and ``log_prob()`` still has that of the targets in the batches.

    Before the draws the mean weights' output is computed once (of a DataLoader for its first batch), so that a model or
    an output that does not fit is refused. Draws run batched by ``torch.func.vmap`` where the model allows it, one
    after the other where not. What takes longer than two seconds shows its progress on stderr. Not thread-safe: the
    model is in eval mode, and draws, until the call returns.

    The entropy of the prediction is split into the part that the data's noise has and the part that not knowing the
    weights has, their mutual information with the prediction (Depeweg et al., 2018, arXiv:1710.07283).

    Warns:
        UserWarning: a single model has no posterior; or the model was trained by :func:`mnvi.fit`, and the short name
            of the likelihood is of another kind, or lacks the noise and units that were learnt.

    Raises:
        ValueError, TypeError: an argument, the model's output or the targets do not fit, naming what came; or the
            prediction is NaN for inputs that are not finite.

    Example:
        >>> prediction = mnvi.predict(model, x, num_samples=64)
        >>> prediction.mean.argmax(-1), prediction.mutual_information
        >>> history = mnvi.fit(models, data, "gaussian")  # an ensemble
        >>> mnvi.predict(models, x, 16, history.likelihood).mean  # of 16 draws of each
        >>> mnvi.predict(model, DataLoader(test_set, 500), 64, likelihood).log_prob().mean()  # test log-likelihood
    """
    positive_int("num_samples", num_samples)
    if chunk_size is not None:
        positive_int("chunk_size", chunk_size)
    models = _models(model)
    likelihoods, joint = _likelihoods(likelihood, noise_scale, len(models))
    _warn_of_units(models[0], likelihood, noise_scale)
    calls = batches(x)
    if len(models) == 1:
        warn_without_posterior(models[0], "all draws are equal and nothing is said about what the model does not know")
    parts = []
    with _evaluation(models), Progress("predict", _total(x, num_samples * len(models))) as progress:
        pairs = zip(models, likelihoods, strict=True)
        samplers = [Sampler(*each, num_samples, chunk_size, progress.advance) for each in pairs]
        for inputs in calls:
            loaded = isinstance(x, DataLoader)
            draws = _joined_draws([each.draw(each.at_home(inputs) if loaded else inputs) for each in samplers], joint)
            target = None if inputs.target is None else inputs.target.to(first(draws).device)
            part = _prediction(joint.to(first(draws).device), draws, target, keep_draws)
            refuse_nan(part.mean, inputs)
            parts.append(_to(part, inputs.device()) if loaded else part)
    if not parts:
        raise ValueError("the DataLoader has no batches")
    snapshot = joint.to(first(parts[0].draws).device) if keep_draws else None
    return replace(_joined(parts), likelihood=snapshot)


def _models(model: Any) -> list[nn.Module]:
    """The models that ``model`` stands for, one or several."""
    models = list(model) if isinstance(model, (list, tuple, nn.ModuleList)) else [model]
    if not models or not all(isinstance(each, nn.Module) for each in models):
        kinds = ", ".join(type(each).__name__ for each in models)
        came = f"a {type(model).__name__} of {kinds or 'nothing'}" if models != [model] else described(model)
        raise TypeError(f"model must be a torch.nn.Module or a list of them, got {came}")
    return models


def _likelihoods(
    likelihood: Any, noise_scale: float | Tensor | None, count: int
) -> tuple[list[Likelihood], Likelihood]:
    """Copies of the likelihoods of all models, and the one of all their draws."""
    if not isinstance(likelihood, (list, tuple)) or count == len(likelihood) == 1:
        [given] = likelihood if isinstance(likelihood, (list, tuple)) else [likelihood]
        one = _likelihood(given, noise_scale)
        return [one] * count, one
    if len(likelihood) != count:
        raise ValueError(f"as many likelihoods as models are needed, or one; got {len(likelihood)} for {count}")
    if noise_scale is not None:
        raise ValueError('noise_scale belongs to the one likelihood "gaussian", got several')
    mixture = Mixture([_likelihood(each, None) for each in likelihood])
    return list(mixture.likelihoods), mixture  # type: ignore[arg-type]


def _warn_of_units(model: nn.Module, likelihood: Any, noise_scale: float | Tensor | None) -> None:
    """Warn where a short name stands for something else, or less, than what the model was trained with."""
    trained = trained_likelihood(model) if isinstance(likelihood, str) else None
    if trained is None or noise_scale is not None:
        return
    if likelihood not in REAL and SHORT_NAMES[likelihood].__name__ != trained:
        warnings.warn(
            f"the model was trained with {trained}, and {likelihood!r} takes its outputs for something else; "
            "give history.likelihood",
            stacklevel=3,
        )
    elif likelihood in REAL:
        without = "noise and units" if likelihood == "gaussian" else "units and calibration"
        warnings.warn(
            f"the model was trained with {trained}, and {likelihood!r} predicts without the {without} "
            "of that; history.likelihood has them",
            stacklevel=3,
        )


@contextmanager
def _evaluation(models: Sequence[nn.Module]):
    """Inside, all models are in eval mode, and there are no gradients."""
    with ExitStack() as stack, torch.no_grad():
        for each in models:
            stack.enter_context(in_eval_mode(each))
        yield


def _joined_draws(draws: Sequence[Draws], joint: Likelihood) -> Draws:
    """The draws of all models as one, where the first one's are."""
    shapes = [", ".join(str(tuple(part.shape[1:])) for part in _parts(each)) for each in draws]
    for k, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"the models' outputs must have one shape; model 0 returns {shapes[0]}, model {k} {shape}")
    home = first(draws[0]).device
    moved = [over(lambda each: each.to(home), each) for each in draws]
    if isinstance(joint, Mixture):
        return joint.joined(moved)
    return over(lambda *each: torch.cat(each), *moved) if len(moved) > 1 else moved[0]


def _parts(draws: Draws) -> tuple[Tensor, ...]:
    return (draws,) if isinstance(draws, Tensor) else draws


def _likelihood(likelihood: Likelihood | str, noise_scale: float | Tensor | None) -> Likelihood:
    """A copy of the likelihood that is meant, which later training leaves as it is."""
    if noise_scale is not None and likelihood != "gaussian":
        raise ValueError(f'noise_scale belongs to the likelihood "gaussian", got {likelihood!r}')
    if isinstance(likelihood, Likelihood):
        return deepcopy(likelihood).requires_grad_(False)
    kind = named(likelihood, {**SHORT_NAMES, "gaussian": Gaussian})
    if kind is not Gaussian:
        return kind()
    try:
        scale = noise_scale.detach() if isinstance(noise_scale, Tensor) else noise_scale
        return Gaussian(0.0 if scale is None else scale)
    except (TypeError, ValueError) as error:
        raise type(error)(f"noise_{error}") from None


def _prediction(likelihood: Likelihood, draws: Draws, target: Tensor | None, keep_draws: bool) -> Prediction:
    """The prediction of one batch; without its draws it has the log density of the target that came along."""
    part = replace(likelihood.prediction(draws), target=target)
    if keep_draws:
        return part
    known = target is not None and likelihood.has_density
    return replace(part, draws=None, likelihood=None, _target_log_prob=part.log_prob() if known else None)


def _to(part: Prediction, device: torch.device) -> Prediction:
    values = {name: getattr(part, name) for name in FIELDS}
    moved = {name: None if value is None else value.to(device) for name, value in values.items()}
    draws = None if part.draws is None else over(lambda each: each.to(device), part.draws)
    return replace(part, draws=draws, **moved)


def _joined(parts: list[Prediction]) -> Prediction:
    """The predictions of all batches as one."""
    if len(parts) == 1:
        return parts[0]
    try:
        joined = {name: _concatenated([getattr(part, name) for part in parts]) for name in FIELDS}
        kept = [part.draws for part in parts if part.draws is not None]
        draws = over(lambda *each: torch.cat(each, 1), *kept) if kept else None
    except RuntimeError as error:
        raise ValueError(f"the outputs of the batches cannot be joined: {error}; predict batch by batch") from None
    return replace(parts[0], draws=draws, **joined)


def _concatenated(values: list[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.cat(present) if len(present) == len(values) else None


def _total(x: Any, num_samples: int) -> int | None:
    """How many draws there will be, over all batches; None where that is not known."""
    if not isinstance(x, DataLoader):
        return num_samples
    try:
        return num_samples * len(x)
    except TypeError:  # an iterable data set does not know its length
        return None
