"""Parameter groups for a torch optimiser, with learning rates that suit a posterior's parameters."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .._checks import positive_float
from ..covariance import Factor
from ..likelihoods import Likelihood
from ..posteriors import Posterior
from ..priors import Prior
from ._gathering import FreeParameters, gathered


def parameter_groups(
    model: nn.Module | Sequence[nn.Module | nn.Parameter],
    lr: float = 1e-3,
    *,
    log_diagonals: float = 1.0,
    off_diagonals: float = 0.03,
) -> list[dict[str, Any]]:
    """Torch parameter groups: means and other parameters, log- and off-diagonals of factors, priors, likelihoods.

    Only the first takes the optimiser's ``weight_decay`` (for AdamW 0.01 by default); the others have theirs set to 0,
    as the decay of a logarithm pulls a scale towards 1. The decay of a mean comes on top of its prior: 0, or Adam
    without one, minimises the ELBO itself.

    A schedule that multiplies the rates (``LambdaLR``, ``CosineAnnealingLR``, ``StepLR``, …) keeps their ratios. One
    that is given rates needs one for each group: a single number sets all groups to it.

    Args:
        model: any module, or a list of all that trains together: modules, such as the model and its likelihood or the
            ELBO that holds it, and single parameters, which count as a likelihood's. What is in none of them never
            trains. Convert the model first, since an optimiser only steps the parameters that it was made with.
        lr: rate of means, biases and everything else that is no posterior covariance.
        log_diagonals: ratio to ``lr`` of the logarithms of scales, those that a factor or posterior names in its
            ``log_scales``. About 0.3 where ARD is to prune: scales that grow before the means settle prune too early.
        off_diagonals: ratio to ``lr`` of a factor's or posterior's other parameters, which couple coordinates
            (off-diagonal entries, low-rank loadings).

    Returns:
        A list of dicts with "params", "lr" and "name", and "weight_decay" in all but "means", for a torch optimiser;
        empty groups are left out.

    Raises:
        TypeError, ValueError: ``model`` is something else, or a rate is not a positive number.

    Example:
        >>> groups = mnvi.parameter_groups(model, lr=1e-3)
        >>> rates = [group["lr"] for group in groups]  # before a schedule changes them
        >>> optimiser = torch.optim.Adam(groups)
        >>> schedule = OneCycleLR(optimiser, max_lr=[10 * rate for rate in rates], total_steps=1_000)
        >>> average = SWALR(optimiser, swa_lr=[0.5 * rate for rate in rates])
        >>> torch.optim.Adam(mnvi.parameter_groups([model, likelihood], lr=1e-3))  # a learnt noise trains, too
    """
    if isinstance(lr, (nn.Module, nn.Parameter)):
        raise TypeError(f"lr must be a number, got a {type(lr).__name__}; what trains together is one list: [model, …]")
    model = gathered(model)
    rates = {"means": positive_float("lr", lr)}
    rates["log_diagonals"] = lr * positive_float("log_diagonals", log_diagonals)
    rates["off_diagonals"] = lr * positive_float("off_diagonals", off_diagonals)
    rates["priors"] = rates["likelihoods"] = lr
    kinds = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Prior):
                kinds[parameter] = "priors"
            elif isinstance(module, (Likelihood, FreeParameters)):
                kinds[parameter] = "likelihoods"
            elif isinstance(module, (Factor, Posterior)):
                kinds[parameter] = "log_diagonals" if name in module.log_scales else "off_diagonals"
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for parameter in model.parameters():
        members[kinds.get(parameter, "means")].append(parameter)
    groups = [{"params": p, "lr": rates[kind], "name": kind} for kind, p in members.items() if p]
    return [group if group["name"] == "means" else {**group, "weight_decay": 0.0} for group in groups]
