"""What is wrong with the examples of a training, said before it begins: shapes, rows that are not finite, labels."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._checks import instance, positive_int
from .likelihoods import Likelihood
from .likelihoods._misfits import all_of, numbered, rows
from .likelihoods.base import Draws, described, over


def check_examples(
    x: Any,
    y: Any,
    likelihood: Likelihood,
    *,
    output: Any = None,
    least: int = 2,
    constant_columns: bool = False,
) -> None:
    """Raise for examples (x, y) that ``likelihood`` cannot learn from, naming the rows; nothing is changed.

    Args:
        x: the inputs of N examples: a tensor (N, …), or a tuple or dict of the model's arguments. The first dimension
            of each tensor among them counts examples; what is no tensor is passed over.
        y: their targets, (N, …).
        likelihood: the observation model.
        output: what the model returns for one or more examples. With it the shape of a target and the number of
            classes are known, and checked too.
        least: the smallest N.
        constant_columns: whether to warn of columns of a matrix x that are constant.

    Raises:
        TypeError: x or y is no tensor, or y is of a type that the likelihood does not take.
        ValueError: lengths that differ, fewer examples than ``least``, NaN or infinite entries, targets without a
            density, or, with ``output``, of another shape than the likelihood takes for it.

    Warns:
        UserWarning: a column is constant, where asked.
    """
    instance("likelihood", likelihood, Likelihood)
    inputs = _inputs(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {described(y)}{_advice(y)}")
    _check_lengths(inputs, y, positive_int("least", least))
    for name, each in inputs.items():
        _check_finite(name, each)
    if output is None:
        likelihood.check_support(y)
    else:
        likelihood.check_target(_of_all(likelihood.read(output), len(y)), y)
    if constant_columns:
        _warn_of_constant(inputs)


def _inputs(x: Any) -> dict[str, Tensor]:
    """The tensors among the model's arguments, and what messages call them."""
    if isinstance(x, Tensor):
        return {"x": x}
    if not isinstance(x, (tuple, Mapping)):
        raise TypeError(
            f"x must be a tensor, or a tuple or dict of the model's arguments, got {described(x)}{_advice(x)}"
        )
    named = x.items() if isinstance(x, Mapping) else enumerate(x)
    found = {f"x[{key!r}]": value for key, value in named if isinstance(value, Tensor)}
    if not found:
        raise TypeError(f"there is no tensor in x, {described(x)}")
    return found


def _advice(value: Any) -> str:
    return "; torch.as_tensor makes a tensor of an array" if hasattr(value, "__array__") else ""


def _check_lengths(inputs: dict[str, Tensor], y: Tensor, least: int) -> None:
    for name, each in {**inputs, "y": y}.items():
        if not each.dim():
            raise ValueError(f"the first dimension of {name} must count examples, got a scalar")
        if len(each) != len(y):
            raise ValueError(f"{name} has {len(each)} examples, y has {len(y)}")
    if len(y) < least:
        raise ValueError(f"at least {least} examples are needed, got {len(y) or 'none'}")


def _check_finite(name: str, values: Tensor) -> None:
    finite = values.isfinite()
    if not all_of(finite):
        bad = ~finite.flatten(1).all(1) if values.dim() > 1 else ~finite
        raise ValueError(
            f"{name} has NaN or infinite entries at {rows(bad)} ({int(bad.sum())} of {len(values)} examples); leave "
            "these out or fill them in"
        )


def _of_all(draws: Draws, count: int) -> Draws:
    """The first output for each of ``count`` examples, as one draw, without memory of its own."""
    return over(lambda each: each[:1].detach().expand(count, *each.shape[1:]).unsqueeze(0), draws)


def _warn_of_constant(inputs: dict[str, Tensor]) -> None:
    for name, each in inputs.items():
        constant = (each == each[:1]).all(0)
        if each.dim() == 2 and constant.any():
            warnings.warn(
                f"constant in {name}: {numbered('column', constant)}; nothing can be learnt from there, and a division "
                "by the standard deviation gives NaN",
                stacklevel=4,
            )
