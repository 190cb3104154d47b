"""How noisy the gradient of a convolutional network is by each way to draw, and what that costs: variance times time.

    python -m benchmarks.estimators --threads 1               # two minutes
    python -m benchmarks.estimators --json figures/estimators.json

Three convolutions of 3×3 (16, 32 and 32 channels) and a linear layer, all with one posterior, trained for a few hundred
steps on scikit-learn's digits, 8×8 pixels. Then the gradient of the cross-entropy of one batch of 128 is drawn many
times. Noise is tr Var(g) of the gradients of the means and of the posterior's parameters, relative to one drawn weight;
what is left of it after a minute's worth of steps is proportional to noise × time.

- weight, flipout, local: the layers' estimators (of the linear layer always local);
- antithetic: half the sum of two gradients, of a draw and of its reflection at the mean; two draws: of two draws;
- another batch: at the mean weights, of another batch each time, for comparison: this noise comes on top.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mnvi
from benchmarks import measuring

SIZE = 128  # of a batch
FAMILIES = {"diagonal": mnvi.posteriors.Diagonal(), "matrix normal": mnvi.posteriors.MatrixNormal()}


def network(family: mnvi.posteriors.PosteriorSpec) -> nn.Module:
    """The network, untrained."""
    layers: list[nn.Module] = []
    for n, p in ((1, 16), (16, 32), (32, 32)):
        layers += [mnvi.MNConv2d(n, p, 3, padding=1, posterior=family), nn.ReLU()]
    layers.insert(4, nn.MaxPool2d(2))
    return mnvi.Sequential(*layers, nn.Flatten(), mnvi.MNLinear(32 * 16, 10, posterior=family))


def data() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) and labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 8 - 1).float().view(-1, 1, 8, 8), torch.from_numpy(labels)


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(mnvi.parameter_groups(model, 2e-3, log_diagonals=0.3), fused=True)
    for _ in range(steps):
        batch = torch.randint(len(x), (SIZE,))
        loss = F.cross_entropy(model(x[batch]), y[batch]) + mnvi.kl(model) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def contenders(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """What draws a gradient, in two parts: of the means, and of the other parameters."""
    x, y = images[:SIZE], labels[:SIZE]

    def one(estimator: str) -> Callable[[], tuple[Tensor, Tensor]]:
        own = copy.deepcopy(model)
        for _, layer in mnvi.bayesian_layers(own):
            layer.estimator = estimator if layer.weight.dim() > 2 else "local"
        return lambda: gradient(own, lambda: F.cross_entropy(own(x), y))

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    def another_batch() -> tuple[Tensor, Tensor]:
        batch = torch.randint(len(images), (SIZE,))
        model.eval()
        found = gradient(model, lambda: F.cross_entropy(model(images[batch]), labels[batch]))
        model.train()
        return found

    def antithetic() -> tuple[Tensor, Tensor]:
        with mnvi.frozen_sample(model):
            first = gradient(model, loss)
            reflect(model)
            return _mean(first, gradient(model, loss))

    single = {name: one(name) for name in ("weight", "flipout", "local")}
    single |= {"antithetic": antithetic, "two draws": lambda: _mean(gradient(model, loss), gradient(model, loss))}
    return single | {"another batch": another_batch}


def reflect(model: nn.Module) -> None:
    """Inside a frozen sample: make its draw the reflection at the mean."""
    for _, layer in mnvi.bayesian_layers(model):
        for noise in layer.frozen_noise or ():
            noise.neg_()


def _mean(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return (first[0] + second[0]) / 2, (first[1] + second[1]) / 2


def gradient(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of ``loss()`` for the means and biases, and for the posterior's parameters."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss(), list(named.values()), materialize_grads=True)
    parts = [
        torch.cat([g.flatten() for name, g in zip(named, found, strict=True) if ("posterior" in name) == posterior])
        for posterior in (False, True)
    ]
    return parts[0], parts[1]


def noise(draw: Callable[[], tuple[Tensor, Tensor]], count: int) -> list[float]:
    """tr Var(g) of both parts, by so many draws."""
    return [torch.stack(part).var(0).sum().item() for part in zip(*(draw() for _ in range(count)), strict=True)]


def measure(family: mnvi.posteriors.PosteriorSpec, steps: int, count: int, rounds: int) -> measuring.Results:
    """Time and noise of all contenders, relative to the first."""
    torch.manual_seed(0)
    x, y = data()
    model = network(family)
    train(model, x, y, steps)
    drawn = contenders(model, x, y)
    rows = measuring.measure(drawn, rounds)
    first = noise(next(iter(drawn.values())), count)
    for name, draw in drawn.items():
        for kind, value, base in zip(("means", "scales"), noise(draw, count), first, strict=True):
            rows[name][f"noise, {kind}"] = value / base
            rows[name][f"× time, {kind}"] = value / base * rows[name]["ratio"]
    return rows


def main() -> None:
    parser = measuring.parser(str(__doc__))
    parser.add_argument("--steps", type=int, default=300, help="of training (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="of every gradient (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of timing (default: %(default)s)")
    arguments = parser.parse_args()
    measuring.prepare(arguments.threads)
    results = {}
    for name, family in FAMILIES.items():
        rows = results[name] = measure(family, arguments.steps, arguments.draws, arguments.rounds)
        columns = ("median_ms", "noise, means", "noise, scales", "× time, means", "× time, scales")
        print(f"\n{name:16}" + "".join(f"{column:>16}" for column in columns))
        for contender, row in rows.items():
            print(f"{contender:16}" + "".join(f"{row[column]:16.3g}" for column in columns), flush=True)
    measuring.write_json(arguments.json, vars(arguments), (), results)


if __name__ == "__main__":
    main()
