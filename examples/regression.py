"""Regression with learnt noise: intervals in the target's own units, and how often they hold what they should.

    python examples/regression.py  # 20 seconds; the 442 patients of scikit-learn's diabetes data

From ten measurements of a patient it predicts how far the disease is a year later, a number from 25 to 346. The plain
network, which learns targets by heart, finds far too little noise. Least squares is hard to beat on such linear data.
"""

import sys
from dataclasses import dataclass

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import mnvi
from mnvi.likelihoods import Gaussian, Likelihood, Standardized


@dataclass(frozen=True)
class Settings:
    train: int = 300  # patients; the other 142 are the test
    hidden: int = 50
    prior_scale: float = 0.3  # of the weights
    epochs: int = 200
    batch_size: int = 50
    lr: float = 1e-2
    draws: int = 200  # of the weights
    level: float = 0.9  # of the intervals
    seed: int = 0


def main(settings: Settings) -> dict[str, dict[str, float]]:
    """Fit a line, a plain and a Bayesian network; returns the table's numbers by row."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    x, y, test_x, test_y = data(settings)
    plain = network(nn.Linear, settings)
    bayesian = network(lambda n, p: mnvi.MNLinear(n, p, prior=mnvi.priors.Normal(settings.prior_scale)), settings)
    predictions = {}

    line = torch.linalg.lstsq(x, y - y.mean()).solution
    noise = Gaussian((x @ line + y.mean() - y).std())
    predictions["least squares"] = noise.prediction((test_x @ line + y.mean())[None])  # a mixture of one draw
    noise = train("plain network", plain, x, y, settings, kl_weight=0)
    predictions["plain network"] = noise.prediction(plain(test_x).detach()[None])
    noise = train("Bayesian network", bayesian, x, y, settings, kl_weight=1)
    predictions["Bayesian network"] = mnvi.predict(bayesian, test_x, settings.draws, noise)

    print(f"{'':18} error  log-likelihood  inside {100 * settings.level:g} %  mean width")
    return {name: describe(name, prediction, test_y, settings.level) for name, prediction in predictions.items()}


def data(settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardized measurements (N, 10) and targets (N, 1) in their own units, for training and for the test."""
    x, y = (torch.tensor(each, dtype=torch.float32) for each in load_diabetes(return_X_y=True, scaled=False))
    order = torch.randperm(len(y))
    train, test = order[: settings.train], order[settings.train :]
    x = (x - x[train].mean(0)) / x[train].std(0)
    return x[train], y[train, None], x[test], y[test, None]


def network(linear, settings: Settings) -> mnvi.Sequential:
    return mnvi.Sequential(linear(10, settings.hidden), nn.Tanh(), linear(settings.hidden, 1))


def train(name: str, model: nn.Module, x: Tensor, y: Tensor, settings: Settings, kl_weight: float) -> Likelihood:
    """Train model and noise together; returns the noise."""
    noise = Gaussian()
    likelihood = Standardized(noise, y.mean(0), y.std(0))
    groups = [*mnvi.parameter_groups(model, settings.lr), {"params": likelihood.parameters(), "lr": settings.lr}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, settings.epochs)
    for epoch in range(settings.epochs):
        for batch in torch.randperm(len(y)).split(settings.batch_size):
            nll = likelihood(model(x[batch]), y[batch])
            loss = nll + kl_weight * mnvi.kl(model) / len(y)  # nats per patient
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch % 10 == 0:
            print(f"\r{name}, epoch {epoch} of {settings.epochs}, loss {loss.item():7.3f}", end="", flush=True)
    print(f"\r{name}: noise of {(likelihood.std * noise.scale).item():.1f}{'':30}")
    return likelihood


def describe(name: str, prediction: mnvi.Prediction, y: Tensor, level: float) -> dict[str, float]:
    """Print and return the error, the mean log-likelihood and the intervals' share of the targets and width."""
    low, high = prediction.sample(4000).quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2]), 0)
    row = {"error": (prediction.mean - y).square().mean().sqrt().item()}
    row |= {"log-likelihood": prediction.log_prob(y).mean().item(), "width": (high - low).mean().item()}
    row |= {"inside": 100 * ((low <= y) & (y <= high)).float().mean().item()}
    print("{:18} {error:5.1f} {log-likelihood:15.2f} {inside:10.1f} % {width:11.0f}".format(name, **row))
    return row


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main(Settings())
