"""Whether a posterior's scales have settled: whether data and KL pull on them with equal force, in opposite senses."""

from typing import Any

import torch
from torch import Tensor, nn

from ..module import kl
from ..optim import parameter_groups
from .members import Members


class Balance:
    """The derivative of the loss by a common factor of all posterior scales, over the last steps.

    At a minimum of the loss the KL's pull, which widens a posterior, is met by that of the data. The derivative is then
    0 but for the noise of draws and batches. How much the KL still moves does not tell: with annealed rates all comes
    to rest, wherever it is.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.sums: Tensor | float = 0.0  # of the derivatives and their squares, (2, K)

    def add(self, groups: list[dict[str, Any]], count: int) -> None:
        """Count the gradients of a step; the parameters in the optimizer's ``groups`` have K = ``count`` in front."""
        grads = [p.grad for p in _log_scales(groups) if p.grad is not None]
        if grads:
            pull = torch.stack([grad.detach().reshape(count, -1).double().sum(1) for grad in grads]).sum(0)
            self.sums = self.sums + torch.stack([pull, pull.square()])
            self.steps += 1

    def unmet(self, members: Members, weights: Tensor, size: int) -> list[float]:
        """What share of the KL's pull the data do not meet, of each member, two standard errors included: at most.

        It is infinite after fewer than two steps, and 0 without a KL in the loss.
        """
        of_kl = torch.tensor([_of_kl(members.member(k).model) for k in range(members.count)], dtype=torch.float64)
        pull = weights.cpu() * of_kl.abs() / size
        if self.steps < 2:  # of which nothing is known
            return torch.where(pull > 0, torch.inf, 0.0).tolist()
        mean, square = torch.as_tensor(self.sums / self.steps).cpu()
        error = ((square - mean.square()).clamp_min(0) / (self.steps - 1)).sqrt()
        return torch.where(pull > 0, (mean.abs() + 2 * error) / pull, 0.0).tolist()

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": self.sums}

    def load(self, state: dict[str, Any]) -> None:
        self.steps, self.sums = state["steps"], state["sums"]


def _log_scales(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups if group["name"] == "log_diagonals" for p in group["params"] if p.requires_grad]


def _of_kl(model: nn.Module) -> float:
    """The derivative of the whole KL by the logarithm of a common factor of all scales."""
    parameters = _log_scales(parameter_groups(model))
    if not parameters:
        return 0.0
    grads = torch.autograd.grad(kl(model), parameters, allow_unused=True)
    return sum(grad.double().sum().item() for grad in grads if grad is not None)
