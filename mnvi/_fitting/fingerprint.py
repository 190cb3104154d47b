"""What a checkpoint remembers of data and models, to be refused for others: shapes, architecture, checksums."""

import copy
import zlib
from collections.abc import Sequence

import torch

from ..likelihoods import Likelihood
from ..module import kl
from ..priors import Prior
from .attributes import as_bytes, described_attributes
from .examples import Examples, TensorExamples
from .models import Objective, described_tree


def of_data(data: Examples | None) -> str:
    """Shapes and the checksum of all bytes; of a Dataset, whose examples may be drawn anew each time, the length."""
    if data is None:
        return "none"
    if not isinstance(data, TensorExamples):
        return f"{data.size} examples of a Dataset"
    shapes, check = [], 0
    for tensor in data.inputs.tensors():
        shapes.append(f"{tuple(tensor.shape)} {tensor.dtype}")
        check = zlib.crc32(as_bytes(tensor), check)
    return f"{', '.join(shapes)}, checksum {check:08x}"


def of_models(objectives: Sequence[Objective], passing: set[tuple[str, str]]) -> str:
    """Number of models, size, and the checksum of architecture, priors' values and what the likelihoods know.

    The values of weights are not part of it, nor the attributes of ``passing``.
    """
    tree = described_tree(objectives[0]) | described_attributes(objectives[0], passing)
    size = sum(parameter.numel() for parameter in objectives[0].parameters())
    check = zlib.crc32(repr(sorted(tree.items())).encode())
    for objective in objectives:
        fitted = _fitted_buffers(objective)
        for path, part in objective.named_modules():
            for name, buffer in part.named_buffers(recurse=False) if isinstance(part, (Prior, Likelihood)) else ():
                set_by_fit = name == "temperature" or f"{path}.{name}" in fitted
                check = check if set_by_fit else zlib.crc32(as_bytes(buffer), check)
    return f"{len(objectives)} of {size} parameters, checksum {check:08x}"


@torch.no_grad()
def _fitted_buffers(objective: Objective) -> set[str]:
    """The names of buffers that a call of the KL writes to, as of the best scales of a prior."""
    tried = copy.deepcopy(objective)
    before = {name: (buffer, buffer._version) for name, buffer in tried.named_buffers()}
    kl(tried.model)
    now = dict(tried.named_buffers())
    return {name for name, (buffer, version) in before.items() if now[name] is not buffer or buffer._version != version}
