"""Norms whose weight and bias have posteriors; :func:`mnvi.to_bayesian` makes them, with ``bias_posterior=True``."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._vectors import VectorPosterior, root_mean_square, vector_parameter

INITIAL_RATIO = 0.1  # posterior standard deviation / root mean square of the norm's weight, at the start
LOCATIONS = {"weight": 1.0, "bias": 0.0}  # of their priors


class BayesianNorm(nn.Module):
    """Mixin before a torch norm: ``weight`` and ``bias``, where it has them, are means of posteriors.

    Priors are N(1, 1) and N(0, 1). Standard deviations start at a tenth of the weight's root mean square, so that the
    output's noise has a hundredth of its variance, as that of the layers of weights.
    """

    def make_bayesian(self) -> None:
        """Attach the posteriors to the norm that was torch's."""
        for name, loc in LOCATIONS.items():
            if (mean := vector_parameter(self, name)) is not None:
                self.add_module(f"{name}_posterior", VectorPosterior(mean, self._scale(), loc).train(self.training))

    def make_plain(self) -> None:
        """Make it torch's again, with the means."""
        for name in list(self._posteriors()):
            delattr(self, f"{name}_posterior")
        self.__class__ = PLAIN[type(self)]  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        """Torch's initial weight and bias, and the posteriors' initial scale."""
        super().reset_parameters()  # type: ignore[misc]
        for posterior in self._posteriors().values():
            posterior.posterior.set_scale_(self._scale())

    def kl(self) -> Tensor:
        """KL(posterior ‖ prior) in nats of weight and bias together, a scalar."""
        terms = [posterior.kl(getattr(self, name)) for name, posterior in self._posteriors().items()]
        return torch.stack(terms).sum()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The torch norm's output for drawn weight and bias, or for their means."""
        posteriors = self._posteriors()
        if not any(each.is_sampling for each in posteriors.values()):
            return super().forward(*args, **kwargs)
        own = vars(self)  # what lies here is found before the parameters; a replica of DataParallel has its own here
        before = {name: own[name] for name in posteriors if name in own}
        drawn = self.drawn()
        try:
            own.update(drawn)
            return super().forward(*args, **kwargs)
        finally:
            for name in drawn:
                own.pop(name)
            own.update(before)

    def drawn(self) -> dict[str, Tensor]:
        """The weight and the bias of one use, those that have a posterior."""
        return {name: posterior(getattr(self, name)) for name, posterior in self._posteriors().items()}

    def _posteriors(self) -> dict[str, VectorPosterior]:
        parts: dict[str, Any] = self._modules
        return {name: parts[f"{name}_posterior"] for name in LOCATIONS if f"{name}_posterior" in parts}

    def _scale(self) -> float:
        weight = vector_parameter(self, "weight")
        size = 0.0 if weight is None else root_mean_square(weight)
        return INITIAL_RATIO * (size or 1.0)


class BayesianBatchNorm1d(BayesianNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with posteriors."""


class BayesianBatchNorm2d(BayesianNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with posteriors."""


class BayesianBatchNorm3d(BayesianNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with posteriors."""


class BayesianLayerNorm(BayesianNorm, nn.LayerNorm):
    """``nn.LayerNorm`` with posteriors."""


class BayesianGroupNorm(BayesianNorm, nn.GroupNorm):
    """``nn.GroupNorm`` with posteriors."""


NORMS: tuple[type[BayesianNorm], ...] = (
    BayesianBatchNorm1d, BayesianBatchNorm2d, BayesianBatchNorm3d, BayesianLayerNorm, BayesianGroupNorm,
)  # fmt: skip
PLAIN: dict[type, type] = {norm: norm.__bases__[1] for norm in NORMS}
BAYESIAN: dict[type, type] = {plain: norm for norm, plain in PLAIN.items()}


def is_plain_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a torch norm that can have posteriors: it has a weight or a bias."""
    return type(module) in BAYESIAN and any(vector_parameter(module, name) is not None for name in LOCATIONS)


def make_norm_bayesian(norm: nn.Module) -> None:
    """Give a torch norm posteriors; it stays the same object."""
    norm.__class__ = BAYESIAN[type(norm)]
    norm.make_bayesian()  # type: ignore[operator]


def bayesian_norms(model: nn.Module) -> Iterator[BayesianNorm]:
    """Every norm of ``model`` that has posteriors, shared ones once."""
    return (module for module in model.modules() if isinstance(module, BayesianNorm))
