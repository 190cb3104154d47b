"""The same network with nn.Linear and with mnvi.MNLinear: which one knows how sure it may be?

    python examples/calibration.py  # half a minute; scikit-learn's digits

Both train on a thousand digits for as many steps, by `mnvi.fit` with its defaults. It holds a tenth of them out to
choose how much the KL weighs, so that nothing is tuned by hand; `predict` averages over draws of the weights.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mnvi

BINS = 15  # of confidence


@dataclass(frozen=True)
class Settings:
    train: int = 1000  # images of 8×8 pixels; the other 797 are the test
    steps: int = 1000
    batch_size: int = 128
    draws: int = 64  # of the weights
    seed: int = 0


def main(settings: Settings) -> dict[str, dict[str, float]]:
    """Train and measure both; returns the table's numbers by row."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    images, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    train, test = torch.randperm(len(labels)).tensor_split([settings.train])
    data, x, y = (images[train].float() / 16, labels[train]), images[test].float() / 16, labels[test]
    batch_size = min(settings.batch_size, settings.train)
    epochs = max(1, settings.steps * batch_size // settings.train)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": settings.seed}

    plain, bayesian = network(nn.Linear), network(mnvi.MNLinear)
    mnvi.fit(plain, data, **options)
    history = mnvi.fit(bayesian, data, **options)
    with torch.no_grad():
        probabilities = {"nn.Linear": plain(x).softmax(1)}
    probabilities["mnvi.MNLinear"] = mnvi.predict(bayesian, x, settings.draws, history.likelihood).mean
    print(f"{settings.train:,} digits to learn from, {len(y)} to be tested on; weight of the KL {history.kl_weight:g}")
    print(f"{'':14} accuracy     NLL  calibration error")
    return {name: described(name, each, y) for name, each in probabilities.items()}


def network(linear: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(linear(64, 100), nn.ReLU(), linear(100, 100), nn.ReLU(), linear(100, 10))


def described(name: str, p: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy in %, NLL in nats, expected calibration error in % (Guo et al., 2017, equation 3); printed too."""
    confidence, predicted = p.max(1)
    right = (predicted == y).float()
    which = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS).index_add(0, which, right - confidence)
    ece = 100 * gaps.abs().sum().item() / len(y)
    row = {"accuracy": 100 * right.mean().item(), "nll": F.nll_loss(p.log(), y).item(), "ece": ece}
    print("{:14} {accuracy:6.2f} % {nll:7.4f} {ece:16.2f} %".format(name, **row))
    return row


if __name__ == "__main__":
    sys.exit(f"{__doc__}\nIt takes no options.") if sys.argv[1:] else main(Settings())
