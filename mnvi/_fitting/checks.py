"""What is wrong with model, data and likelihood together, said before anything is changed."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._data_checks import check_examples
from .._first_call import first_call
from .._inputs import Inputs
from .._models.eval_mode import in_eval_mode
from ..likelihoods import Standardized
from .examples import Examples, TensorExamples
from .members import members
from .models import Objective


def check(objectives: Sequence[Objective], name: str, data: Examples, numbers: Tensor, least: int) -> None:
    """Raise for data that the models cannot learn from: tensors are looked at whole, of a Dataset two examples.

    Args:
        name: what messages call the data.
        numbers: of the examples.
        least: the smallest number of examples.

    Raises:
        TypeError, ValueError: they do not fit, naming what came.
    """
    if data.size < least:
        raise ValueError(f"{name}: at least {least} examples are needed, got {data.size}")
    batch = data.batch(numbers[:2])
    different = objectives if data.own else objectives[:1]
    for k, objective in enumerate(different):
        seen = batch.map(lambda tensor, k=k: tensor[k]) if data.own else batch
        every = data.of_model(k) if isinstance(data, TensorExamples) else seen
        assert every.target is not None
        x = every.named or (every.positional[0] if len(every.positional) == 1 else every.positional)
        likelihood = copy.deepcopy(objective.likelihood).to(every.target.device)
        try:
            check_examples(x, every.target, likelihood, output=output(objective.model, seen), least=1)
        except (TypeError, ValueError) as error:
            which = f" of model {k}" if len(different) > 1 else ""
            classes = isinstance(likelihood, Standardized) and not every.target.is_floating_point()
            advice = '; of class labels the likelihood is "categorical"' if classes else ""
            raise type(error)(f"{name}{which}: {error}{advice}") from error


@torch.no_grad()
def output(model: nn.Module, batch: Inputs) -> object:
    """What the model returns in eval mode, in which nothing of it changes; then it is in its modes again."""
    device = next(model.parameters()).device
    with in_eval_mode(model):
        try:
            return first_call(model, batch.to(device))
        except TypeError as error:
            if not batch.named:
                raise
            raise TypeError(
                f"the model does not take the arguments {', '.join(batch.named)}: those of a dict are named as in the "
                f'model\'s forward, and the target is called "labels" ({error})'
            ) from error


def refusal(objectives: Sequence[Objective], data: Examples, numbers: Tensor) -> Exception | None:
    """Why these do not train in one vmap, found out by one loss of copies and its derivative; ``None`` if they do."""
    device = next(objectives[0].parameters()).device
    together = members([copy.deepcopy(each).to(device) for each in objectives])
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            batch = data.batch(numbers[:2]).to(device)
            together.module.train()
            nll, divergence = together.losses(batch, data.own and together.count > 1)
            (nll + divergence).sum().backward()
            if together.count > 1:
                _check_buffers(objectives[0], batch.map(lambda tensor: tensor[0]) if data.own else batch)
    except Exception as error:  # whatever the model does that vmap cannot follow
        return error
    return None


def _check_buffers(objective: Objective, batch: Inputs) -> None:
    """Raise where a forward pass puts another tensor in place of a buffer, which vmap would not see.

    Raises:
        ValueError: it does.
    """
    tried = copy.deepcopy(objective).to(next(iter(batch.tensors())).device).train()
    before = {name: id(buffer) for name, buffer in tried.named_buffers()}
    tried(batch.positional, batch.named, batch.target)
    changed = [name for name, buffer in tried.named_buffers() if before.get(name) != id(buffer)]
    if changed:
        raise ValueError(
            f"the buffer {changed[0].removeprefix('model.')} is assigned anew in forward; buffer.copy_(…) writes to it"
        )
