"""A layer that passes on some of its inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Select(nn.Module):
    """y = x restricted to ``indices`` along ``dim``: ``torch.index_select(x, dim, indices)``.

    :func:`mnvi.sparsity.compact` puts it before the first layer of weights, to drop the inputs that no weight uses.

    Args:
        indices: which inputs to pass on, in order; ints ≥ 0.
        dim: the dimension they count, default 1.

    Raises:
        ValueError: ``indices`` is empty, not one-dimensional or has negative or non-integer entries.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[int] | Tensor, dim: int = 1) -> None:
        super().__init__()
        indices = torch.as_tensor(indices)
        if indices.dim() != 1 or not len(indices) or indices.dtype != torch.long or bool((indices < 0).any()):
            raise ValueError(f"indices must be a non-empty list of integers >= 0, got {indices}")
        self.dim = dim
        self.register_buffer("indices", indices)

    def forward(self, input: Tensor) -> Tensor:
        """(*, inputs, *) to (*, len(indices), *)."""
        return input.index_select(self.dim, self.indices)

    def extra_repr(self) -> str:
        return f"{len(self.indices)} inputs, dim={self.dim}"
