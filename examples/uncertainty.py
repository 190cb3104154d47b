"""A trained convolutional network made Bayesian: is it better calibrated, and does it know what it does not know?

    python examples/uncertainty.py  # half a minute; scikit-learn's digits; the figure goes to runs/uncertainty.png

`to_bayesian` keeps its weights as the means of a posterior, which is fine-tuned. So is the plain network, as control.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mnvi


@dataclass(frozen=True)
class Settings:
    train: int = 500  # images of 8×8 pixels
    held_out: int = 100  # that the networks never see: they choose the weight of the KL; the other 1,197 are the test
    epochs: int = 30
    more_epochs: int = 20  # of the fine-tuning, and of the control
    batch_size: int = 32
    draws: int = 32  # of the weights
    out: str = "runs"
    seed: int = 0


def main(settings: Settings) -> dict[str, dict[str, float]]:
    """Train, convert, fine-tune, predict; returns the table's numbers by row."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    images, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    order, images = torch.randperm(len(labels)), images.float().view(-1, 1, 8, 8) / 16
    parts = order.tensor_split([settings.train, settings.train + settings.held_out])
    x, y, held_x, held_y, test_x, test_y = (each[part] for part in parts for each in (images, labels))
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    plain = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 10))
    options: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
    mnvi.fit(plain, (x, y), epochs=settings.epochs, **options)
    longer, bayesian = copy.deepcopy(plain), mnvi.to_bayesian(copy.deepcopy(plain), estimator="local")
    mnvi.fit(longer, (x, y), epochs=settings.more_epochs, **options)
    history = mnvi.fit(bayesian, (x, y), epochs=settings.more_epochs, validation=(held_x, held_y), **options)
    print(f"weight of the KL: {history.kl_weight:g} (1 is Bayes' rule); of held-out NLLs, in nats:")
    print(", ".join(f"{trial['kl_weight']:g}: {trial['nll']:.3f}" for trial in history.search))

    prediction = mnvi.predict(bayesian, test_x, settings.draws, history.likelihood, chunk_size=8)
    networks = {"plain network": plain, "plain network, longer": longer, "mean weights": bayesian}
    probabilities = {name: model.eval()(test_x).detach().softmax(1) for name, model in networks.items()}
    probabilities[f"{settings.draws} draws"] = prediction.mean
    unsure = torch.as_tensor(prediction.mutual_information).argsort(descending=True)[:16]
    figure(Path(settings.out), test_x[unsure], test_y[unsure], prediction.mean[unsure])
    print(f"{'':22} accuracy     NLL  calibration error")
    return {name: describe(name, each, test_y) for name, each in probabilities.items()}


def describe(name: str, p: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy in %, NLL in nats, expected calibration error in % (Guo et al., 2017, equation 3)."""
    confidence, predicted = p.max(1)
    right = (predicted == y).float()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins).index_add(0, which, right - confidence)
    ece = 100 * gaps.abs().sum().item() / len(y)
    row = {"accuracy": 100 * right.mean().item(), "nll": F.nll_loss(p.log(), y).item(), "ece": ece}
    print("{:22} {accuracy:6.2f} % {nll:7.4f} {ece:16.2f} %".format(name, **row))
    return row


def figure(folder: Path, images: Tensor, labels: Tensor, p: Tensor) -> None:
    probability, predicted = p.max(1)
    right = (predicted == labels).sum()
    print(f"of the {len(labels)} images it knows least about {right} are classified right: {folder}/uncertainty.png")
    canvas = Figure(figsize=(9, 3.5), dpi=150, layout="constrained")
    for i, panel in enumerate(canvas.subplots(2, 8).flat):
        panel.imshow(images[i, 0].numpy(), cmap="gray_r")
        title = f"is {labels[i]}, predicted\n{predicted[i]} ({100 * probability[i]:.0f} %)"
        panel.set_title(title, fontsize=9, color="black" if predicted[i] == labels[i] else "#c23b22")
        panel.set(xticks=[], yticks=[])
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "uncertainty.png")


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main(Settings())
