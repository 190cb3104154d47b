"""A trained convolutional network made Bayesian: is it better calibrated, and does it know what it does not know?

    python examples/uncertainty.py  # half a minute; scikit-learn's digits; the figure goes to runs/uncertainty.png

It learns from 500 handwritten digits of 8×8 pixels and is tested on the other 1,297. `to_bayesian` keeps its weights as
the means of a posterior, which is then fine-tuned. The control is the plain network, trained on for as many epochs.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mnvi


@dataclass(frozen=True)
class Settings:
    train: int = 500  # images
    epochs: int = 30
    more_epochs: int = 20  # of the fine-tuning, and of the control
    batch_size: int = 32
    lr: float = 3e-3
    kl_weight: float = 0.1  # 1 is the posterior; of so few images a colder one predicts better
    draws: int = 32  # of the weights
    out: str = "runs"
    seed: int = 0


SETTINGS = Settings()


def main(settings: Settings = SETTINGS) -> dict[str, dict[str, float]]:
    """Train, convert, fine-tune, predict; returns the table's numbers by row."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    images, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    order, images = torch.randperm(len(labels)), images.float().view(-1, 1, 8, 8) / 16
    x, y, test_x, test_y = (each[part] for part in order.tensor_split([settings.train]) for each in (images, labels))

    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)]
    plain = nn.Sequential(*layers)
    train("plain network", plain, x, y, settings.epochs, settings)
    bayesian = mnvi.to_bayesian(copy.deepcopy(plain), estimator="local")  # the default: MatrixNormal(), Normal(1.0)
    train("plain network, longer", longer := copy.deepcopy(plain), x, y, settings.more_epochs, settings)
    train("Bayesian network", bayesian, x, y, settings.more_epochs, settings)

    prediction = mnvi.predict(bayesian, test_x, settings.draws, chunk_size=8)
    networks = {"plain network": plain, "plain network, longer": longer, "mean weights": bayesian}
    probabilities = {name: model.eval()(test_x).detach().softmax(1) for name, model in networks.items()}
    probabilities[f"{settings.draws} draws"] = prediction.mean
    print(f"{'':22} accuracy     NLL  calibration error")
    rows = {name: describe(name, each, test_y) for name, each in probabilities.items()}
    unsure = torch.as_tensor(prediction.mutual_information).argsort(descending=True)[:16]
    right = (prediction.mean.argmax(1) == test_y)[unsure].sum()
    print(f"of the {len(unsure)} test images that it knows least about {right} are classified right")
    figure(Path(settings.out), test_x[unsure], test_y[unsure], prediction.mean[unsure])
    return rows


def train(name: str, model: nn.Module, x: Tensor, y: Tensor, epochs: int, settings: Settings) -> None:
    optimizer = torch.optim.Adam(mnvi.parameter_groups(model, settings.lr))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, epochs)
    for epoch in range(epochs):
        model.train()
        for batch in torch.randperm(len(y)).split(settings.batch_size):
            nll = F.cross_entropy(model(x[batch]), y[batch])
            loss = nll + settings.kl_weight * mnvi.kl(model) / len(y)  # the KL of a plain network is 0
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"\r{name}: epoch {epoch + 1} of {epochs}, NLL {nll.item():.3f} ", end="", flush=True)
    print()


def describe(name: str, p: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy in %, NLL in nats, expected calibration error in % (Guo et al., 2017, equation 3)."""
    confidence, predicted = p.max(1)
    right = (predicted == y).float()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins).index_add(0, which, right - confidence)
    row = {"accuracy": 100 * right.mean().item(), "nll": F.nll_loss(p.log(), y).item()}
    row["ece"] = 100 * gaps.abs().sum().item() / len(y)
    print("{:22} {accuracy:6.2f} % {nll:7.4f} {ece:16.2f} %".format(name, **row))
    return row


def figure(folder: Path, images: Tensor, labels: Tensor, p: Tensor) -> None:
    canvas = Figure(figsize=(9, 3.5), dpi=150, layout="constrained")
    canvas.suptitle("What the network knows least about: label, and the two likeliest classes")
    for panel, image, label, row in zip(canvas.subplots(2, 8).flat, images, labels, p, strict=True):
        (first, second), classes = row.topk(2)
        title = f"{label}\n{classes[0]}: {100 * first:.0f} %, {classes[1]}: {100 * second:.0f} %"
        panel.imshow(image[0].numpy(), cmap="gray_r")
        panel.set_title(title, fontsize=7, color="C2" if classes[0] == label else "C3")
        panel.set_axis_off()
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / "uncertainty.png")
    print(f"in {folder}: uncertainty.png")


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main()
