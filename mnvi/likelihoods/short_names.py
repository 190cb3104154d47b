"""The short names of likelihoods, which stand for objects in ``predict``, ``fit`` and ``prune``."""

from collections.abc import Callable, Mapping
from typing import Any

from .base import Likelihood, described
from .bernoulli import Bernoulli
from .categorical import Categorical
from .heteroscedastic_gaussian import HeteroscedasticGaussian
from .poisson import Poisson

SHORT_NAMES: dict[str, type[Likelihood]] = {  # of those that have no parameters
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
    "poisson": Poisson,
}
LEARNT = {  # what to give instead of names whose scale is learnt
    "gaussian": "mnvi.likelihoods.Gaussian(scale)",
    "student_t": "mnvi.likelihoods.StudentT(scale=…)",
}


def named(likelihood: Any, names: Mapping[str, Callable[[], Likelihood]] = SHORT_NAMES) -> Callable[[], Likelihood]:
    """What makes the likelihood that a short name stands for, its class for one.

    Raises:
        ValueError: it is none of ``names``.
    """
    if not isinstance(likelihood, str) or likelihood not in names:
        hint = f"; did you mean {likelihood.__name__}()?" if isinstance(likelihood, type) else ""
        if isinstance(getattr(likelihood, "likelihood", None), (Likelihood, list)):
            hint = "; what a History has is history.likelihood"
        if isinstance(likelihood, str) and likelihood in LEARNT:
            hint = (
                f"; {likelihood!r} has a scale that is learnt: after mnvi.fit give history.likelihood, else an object, "
                f"{LEARNT[likelihood]}"
            )
        known = f"an object of mnvi.likelihoods or one of {', '.join(map(repr, sorted(names)))}"
        raise ValueError(f"likelihood must be {known}, got {described(likelihood)}{hint}")
    return names[likelihood]
