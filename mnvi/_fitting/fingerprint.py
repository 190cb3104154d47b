"""What a checkpoint remembers of data and models, to be refused for others: shapes, architecture, checksums."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from ..priors import Prior
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
        check = zlib.crc32(_bytes(tensor), check)
    return f"{', '.join(shapes)}, checksum {check:08x}"


def of_models(objectives: Sequence[Objective]) -> str:
    """Number of models, size, and the checksum of architecture, priors' values and what the likelihoods know.

    The values of weights are not part of it.
    """
    tree = described_tree(objectives[0])
    size = sum(parameter.numel() for parameter in objectives[0].parameters())
    check = zlib.crc32(repr(sorted(tree.items())).encode())
    for objective in objectives:
        for part in objective.modules():
            for name, buffer in part.named_buffers(recurse=False) if isinstance(part, (Prior, Likelihood)) else ():
                check = check if name == "temperature" else zlib.crc32(_bytes(buffer), check)  # which a fit sets
    return f"{len(objectives)} of {size} parameters, checksum {check:08x}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
