"""Inputs and targets of a size from which networks learn badly, which is said before they train."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .likelihoods import Gaussian, HeteroscedasticGaussian, Likelihood, StudentT
from .likelihoods._misfits import numbered

LARGE = 30.0  # beside 1, the size of what is standardised
OF_UNITS = (Gaussian, HeteroscedasticGaussian, StudentT)  # likelihoods of targets that have some


def warn_of_sizes(inputs: Iterable[Any], target: Tensor, likelihood: Likelihood, stacklevel: int = 3) -> None:
    """Warn of inputs of root mean square above 30, and of real targets above 30 or below 1/30, if none standardises."""
    found = [said for each in inputs if (said := _of_inputs(each))]
    size = _size(target.flatten()[:, None]).item() if isinstance(likelihood, OF_UNITS) else 1.0
    if not 1 / LARGE <= size <= LARGE:
        found.append(
            f'targets have root mean square {size:.2g}: the short name of the likelihood, "gaussian" for one, '
            "standardises them, and so does mnvi.likelihoods.Standardized"
        )
    if found:
        warnings.warn(f"networks learn badly from numbers far from 1: {'; '.join(found)}", stacklevel=stacklevel)


def _of_inputs(x: object) -> str:
    """What is too large, in words; in a matrix column by column."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return ""
    sizes = _size(x if x.dim() == 2 else x.flatten()[:, None])
    if not bool((sizes > LARGE).any()):
        return ""
    where = f", {numbered('column', sizes > LARGE)}" if x.dim() == 2 else ""
    return f"inputs have root mean square {sizes.max():.2g}{where}; subtract the mean, divide by the standard deviation"


def _size(x: Tensor) -> Tensor:
    """The root mean square of every column; infinite and NaN entries do not count."""
    return x.double().nan_to_num(0, 0, 0).square().mean(0).sqrt()
