"""Calls of a model with inputs that do not fit: what came, and the change of the inputs that makes it succeed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._inputs import Inputs
from .likelihoods._misfits import rows
from .likelihoods.base import described

ONE_EXAMPLE = "; a single example x is a batch as x[None]"
MANY = "; a tuple holds the arguments of the model, which takes the first alone: give that, without targets"


def first_call(model: nn.Module, inputs: Inputs) -> Any:
    """The output of a model that is in eval mode.

    Raises:
        ValueError: the model fails with a RuntimeError or ValueError; what makes these inputs fit is named where it
            has been tried with success. Other errors, and the want of memory, pass.
    """
    try:
        return inputs.call(model)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        advice = next((words for words, other in _changes(model, inputs) if _is_taken(model, other)), "")
        if not isinstance(error, RuntimeError) and not advice:
            raise
        came = ", ".join(described(each) for each in (*inputs.positional, *inputs.named.values()))
        raise ValueError(f"the model does not take {came}{advice} ({error})") from error


@torch.no_grad()
def refuse_one_example(model: nn.Module, inputs: Inputs, count: int) -> None:
    """Raise ValueError for one vector without batch dimension, of whose outputs each would be taken for an example.

    That is known where a vector of real numbers gives another number of ``count`` outputs than it has entries, and the
    same vector as a batch of one gives one.
    """
    x = inputs.positional[0] if len(inputs.positional) == 1 and not inputs.named else None
    if not isinstance(x, Tensor) or x.dim() != 1 or not x.is_floating_point() or len(x) == count:
        return
    try:
        output = model(x[None])
    except Exception:  # then x[None] is no better
        return
    if isinstance(output, Tensor) and output.dim() and len(output) == 1:
        raise ValueError(f"the first dimension of x must count examples, got {described(x)}{ONE_EXAMPLE}")


def refuse_nan(mean: Tensor, inputs: Inputs) -> None:
    """Raise ValueError where the prediction ``mean``, (N, …), is NaN as inputs of these examples are not finite.

    Of several inputs one may be a mask, of which entries are −∞: then only NaN counts.
    """
    if not mean.isnan().any():
        return
    lost = mean.isnan().flatten(1).any(1) if mean.dim() > 1 else mean.isnan()
    tensors = {f"x[{key!r}]": each for key, each in (*enumerate(inputs.positional), *inputs.named.items())}
    tensors = {
        name: each for name, each in tensors.items() if isinstance(each, Tensor) and each.shape[:1] == lost.shape
    }
    alone = len(inputs.positional) + len(inputs.named) == 1
    for name, each in tensors.items():
        bad = ~each.isfinite() if alone else each.isnan()
        bad = lost.to(each.device) & (bad.flatten(1).any(1) if bad.dim() > 1 else bad)
        if bad.any():
            raise ValueError(
                f"{'x' if inputs.positional and alone else name}, {described(each)}, has NaN or infinite entries at "
                f"{rows(bad)}, and so has the prediction; leave these out or fill them in"
            )


def _changes(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """What may have been meant: words of advice, and the inputs to which it leads."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    other = next((each.dtype for each in inputs.tensors() if each is not inputs.target and each.dtype != own), None)
    if own is not None and other is not None:
        change = "float()" if own == torch.float32 else f"to({own})"
        words = f" of {other}, as its parameters are {own}: x.{change} fits"
        yield words, inputs.map(lambda each: each.to(own) if each.is_floating_point() else each)
        yield words, inputs.map(lambda each: each.to(own))
    if len(inputs.positional) == 1 and isinstance(inputs.positional[0], Tensor):
        yield ONE_EXAMPLE, Inputs((inputs.positional[0][None],))
    if len(inputs.positional) > 1:
        yield MANY, Inputs(inputs.positional[:1])


@torch.no_grad()
def _is_taken(model: nn.Module, inputs: Inputs) -> bool:
    try:
        inputs.call(model)
    except Exception:
        return False
    return True
