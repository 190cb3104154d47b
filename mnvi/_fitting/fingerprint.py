"""What a checkpoint remembers of data and models, to be refused for others: shapes and checksums."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .examples import Examples, TensorExamples
from .models import Objective


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
    """The number of models, of their parameters, and the checksum of all names and shapes; not of their values."""
    state = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in objectives[0].state_dict().items()]
    size = sum(parameter.numel() for parameter in objectives[0].parameters())
    return f"{len(objectives)} of {size} parameters, checksum {zlib.crc32(' '.join(state).encode()):08x}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
