"""How good a classifier's probabilities are, and how well its uncertainty tells strange inputs from its own."""

import math

import torch
from torch import Tensor
from torchmetrics.functional import auroc, calibration_error

from examples.common.metrics import accuracy
from mnvi.likelihoods import Categorical

BINS = 15  # of confidence


def describe(draws: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy and calibration error in percent, NLL in nats, Brier score, of the mean over the draws.

    Args:
        draws: logits (S, N, C).
        y: labels (N,).

    The calibration error is over 15 equal bins of confidence (Guo et al., 2017, equation 3). The Brier score is
    mean_n Σ_c (p_nc − 1[y_n = c])², from 0 to 2 (Brier, 1950).
    """
    prediction = Categorical().prediction(draws.double())
    p = prediction.mean
    ece = calibration_error(p, y, task="multiclass", num_classes=p.shape[1], n_bins=BINS, norm="l1")
    return {
        "accuracy": accuracy(p, y),
        "nll": -prediction.log_prob(y).mean().item(),
        "ece": 100 * float(ece),
        "brier": (p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(1).mean().item(),
    }


def separation(own: Tensor, strange: Tensor) -> dict[str, float | None]:
    """Area under the ROC curve, in percent, of telling ``strange`` logits (S, M, C) from one's ``own`` (S, N, C).

    By the predictive entropy, and by the mutual information, which is None of a single draw, where there is none.
    """
    inside, out = (Categorical().prediction(each.double()) for each in (own, strange))
    entropy = _area(inside.predictive_entropy, out.predictive_entropy, own.shape[2])
    information = _area(inside.mutual_information, out.mutual_information, own.shape[2]) if len(own) > 1 else None
    return {"entropy": entropy, "information": information}


def _area(inside: Tensor | None, out: Tensor | None, classes: int) -> float:
    assert inside is not None
    assert out is not None
    scores = torch.cat([inside, out]) / math.log(classes)  # from 0 to 1, as torchmetrics takes scores
    strange = torch.cat([torch.zeros(len(inside)), torch.ones(len(out))]).long()
    area = auroc(scores, strange, task="binary")
    assert area is not None
    return 100 * float(area)


def reliability(draws: Tensor, y: Tensor) -> list[list[float]]:
    """For each bin of confidence: how many predictions, their mean confidence and their accuracy, from 0 to 1."""
    confidence, predicted = Categorical().prediction(draws.double()).mean.max(1)
    which = (confidence * BINS).long().clamp_max(BINS - 1)  # a confidence of 1 is in the last bin
    right = (predicted == y).double()
    columns = torch.stack([torch.ones_like(right), confidence, right], 1)
    count, *sums = torch.zeros(BINS, 3, dtype=right.dtype).index_add(0, which, columns).T
    share = [torch.where(count > 0, each / count.clamp_min(1), 0.0) for each in sums]
    return torch.stack([count, *share], 1).tolist()
