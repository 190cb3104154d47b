"""The linear layer whose weight is stored as (in, out): ``Conv1D`` of Hugging Face's transformers, the one of GPT-2."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import INITIAL_RATIO, BayesianLayer

STD = 0.02  # of the weights that transformers' layer starts with


class MNTransposedLinear(BayesianLayer, nn.Module):
    """y = x W + bias, W of shape (in, out) with a posterior; :func:`mnvi.to_bayesian` makes it of a ``Conv1D``.

    The weight matrix is stored as torch's transposed convolutions store theirs: row factors are over inputs, column
    factors over outputs. ``estimator="local"`` draws x W exactly, independently for each row of the input.

    Input (*, in), output (*, out).
    """

    local_estimator = "transposed_output_deviation"
    plain: type[nn.Module]  # what to_deterministic goes back to

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError("MNTransposedLinear is made by mnvi.to_bayesian of a model with transformers' Conv1D layers")

    def reset_parameters(self) -> None:
        """Weights of N(0, 0.02²) and biases of 0, as in transformers, the posterior's initial scale, and no pruning."""
        nn.init.normal_(self.weight, std=STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._reset_posterior()

    def _initial_scale(self) -> float:
        return INITIAL_RATIO * STD

    def _check_input(self, input: Tensor) -> None:
        if input.dim() == 0 or input.shape[-1] != self.weight.shape[0]:
            raise ValueError(f"expected an input of shape (*, {self.weight.shape[0]}), got {tuple(input.shape)}")

    def _transform(self, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
        return F.linear(input, weight.mT, bias)

    def _deviation(self, input: Tensor) -> Tensor:
        return self.posterior.transposed_output_deviation(input)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, {self._posterior_repr()}"


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether ``module`` is transformers' ``Conv1D``, told by its name: that library need not be installed."""
    kind, weight = type(module), module._parameters.get("weight")
    named = kind.__name__ == "Conv1D" and kind.__module__.split(".")[0] == "transformers"
    return named and weight is not None and weight.dim() == 2
