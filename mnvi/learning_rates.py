"""Learning rates that suit a posterior's parameters."""

from torch import nn

from .checks import positive_float
from .covariance import Factor
from .posteriors import Posterior


def parameter_groups(model: nn.Module, lr: float = 1e-3, *, log_diagonals: float = 1.0, off_diagonals: float = 0.03):
    """Three torch parameter groups: means and other parameters, log-diagonals, off-diagonals of the factors.

    Args:
        model: any module.
        lr: rate of means, biases and everything else that is no posterior covariance.
        log_diagonals: ratio to ``lr`` of the logarithms of scales.
        off_diagonals: ratio to ``lr`` of what couples coordinates (off-diagonal factor entries, low-rank loadings).

    Returns:
        A list of dicts with "params", "lr" and "name" for a torch optimiser; empty groups are left out.

    Example:
        >>> optimiser = torch.optim.Adam(mnvi.parameter_groups(model, lr=1e-3))
    """
    rates = {"means": positive_float("lr", lr)}
    rates["log_diagonals"] = lr * positive_float("log_diagonals", log_diagonals)
    rates["off_diagonals"] = lr * positive_float("off_diagonals", off_diagonals)
    kinds = {}
    for module in model.modules():
        if isinstance(module, (Factor, Posterior)):
            for name, parameter in module.named_parameters(recurse=False):
                kinds[parameter] = "log_diagonals" if name.startswith("log_") else "off_diagonals"
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for parameter in model.parameters():
        members[kinds.get(parameter, "means")].append(parameter)
    return [{"params": p, "lr": rates[kind], "name": kind} for kind, p in members.items() if p]
