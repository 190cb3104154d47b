"""The likelihood of an ensemble: every draw has that of its own model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Draws, Likelihood, Summary, first, over
from .standardized import Standardized


class Mixture(Likelihood):
    """1/K · Σ_k p_k(target | draws of model k), of K likelihoods of one kind, each with its own scale or temperature.

    Draws are a tuple: the outputs of all models, stacked over all draws, (K·S, N, …), and last the number of each one's
    model, (K·S, N).

    Args:
        likelihoods: one for each model.

    Raises:
        ValueError: they are of several kinds.
    """

    def __init__(self, likelihoods: Sequence[Likelihood]) -> None:
        super().__init__()
        kinds = list(dict.fromkeys(map(_kind, likelihoods)))
        if len(kinds) > 1:
            raise ValueError(f"the likelihoods of several models must be of one kind, got {', '.join(kinds)}")
        self.likelihoods = nn.ModuleList(likelihoods)

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        return self._first.discrete

    @property
    def has_density(self) -> bool:
        return all(each.has_density for each in self._members)

    def widen_(self, factor: float) -> None:
        for member in self._members:
            member.widen_(factor)

    def joined(self, draws: Sequence[Draws]) -> Draws:
        """The draws of all, from those of each, (S, N, …)."""
        numbers = [torch.full(first(each).shape[:2], k, device=first(each).device) for k, each in enumerate(draws)]
        parts = [(each,) if isinstance(each, Tensor) else each for each in draws]
        return over(lambda *each: torch.cat(each), *((*part, n) for part, n in zip(parts, numbers, strict=True)))

    def read(self, output: Any) -> Draws:
        return output

    def target_shape(self, draws: Draws) -> torch.Size:
        shapes = [member.target_shape(own) for member, _, own in self._parts(draws)]
        return shapes[0]

    def check_support(self, target: Tensor) -> None:
        for member in self._members:
            member.check_support(target)

    def check_values(self, draws: Draws, target: Tensor) -> None:
        for member, _, own in self._parts(draws):
            member.check_values(own, target)

    def shape_advice(self, draws: Draws, target: Tensor) -> str:
        member, _, own = self._parts(draws)[0]
        return member.shape_advice(own, target)

    def log_density(self, draws: Draws, target: Tensor) -> Tensor:
        return self._of_each(draws, lambda member, own: member.log_density(own, target))

    def observe(self, draws: Draws, generator: torch.Generator | None) -> Tensor:
        return self._of_each(draws, lambda member, own: member.observe(own, generator))

    def summary(self, draws: Draws) -> Summary:
        """By the laws of total expectation and variance; the entropy of classes, or of the normal of these moments.

        That of real targets is computed in double precision, as the square of a unit such as 1e20 overflows in single.
        """
        exact = not self.discrete and first(draws).device.type != "mps"  # which has no double precision
        parts = [
            (len(rows), member.summary(over(Tensor.double, own) if exact else own))
            for member, rows, own in self._parts(draws)
        ]
        found = self._joint_summary(parts, len(draws[-1]))
        member, _, own = self._parts(draws)[0]
        dtype = member.summary(over(lambda each: each[:1], own))[0].dtype  # that of the model by itself
        return tuple(None if each is None else each.to(dtype) for each in found)  # type: ignore[return-value]

    def _joint_summary(self, parts: Sequence[tuple[int, Summary]], count: int) -> Summary:
        """The summary of ``count`` draws, from the number of those of each model and their summary."""
        shares = torch.tensor([count for count, _ in parts], dtype=torch.float64) / count
        means, variances, _, expected, information = zip(*(summary for _, summary in parts), strict=True)
        mean = _average(shares, means)
        spread = _average(shares, [(each - mean).square() for each in means])
        variance = _average(shares, variances) + spread
        total = self._first.mixture_entropy(mean, variance)
        noise = None if any(each is None for each in expected) else _average(shares, expected)
        if total is None or noise is None or any(each is None for each in information):
            return mean, variance, total, noise, None
        return mean, variance, total, noise, (total - noise).clamp_min(0)

    @property
    def _members(self) -> list[Any]:
        return list(self.likelihoods)

    @property
    def _first(self) -> Likelihood:
        return self._members[0]

    def _parts(self, draws: Draws) -> list[tuple[Likelihood, Tensor, Draws]]:
        """Of each model that has draws: its likelihood, the numbers of its draws, and these."""
        *outputs, numbers = draws
        found = []
        for k, member in enumerate(self._members):
            rows = (numbers[:, 0] == k).nonzero().flatten()
            own = [each[rows] for each in outputs]
            if len(rows):
                found.append((member, rows, own[0] if len(own) == 1 else tuple(own)))
        return found

    def _of_each(self, draws: Draws, function: Callable[[Likelihood, Draws], Tensor]) -> Tensor:
        """``function`` of every model's draws, in the order of the draws."""
        parts = self._parts(draws)
        found = torch.cat([function(member, own) for member, _, own in parts])
        return found[torch.cat([rows for _, rows, _ in parts]).argsort()]


def _kind(likelihood: Likelihood) -> str:
    inner = f"({_kind(likelihood.likelihood)})" if isinstance(likelihood, Standardized) else ""
    return f"{type(likelihood).__name__}{inner}"


def _average(shares: Tensor, values: Sequence[Tensor]) -> Tensor:
    return sum(share * each for share, each in zip(shares.tolist(), values, strict=True))  # type: ignore[return-value]
