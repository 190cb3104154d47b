"""What becoming Bayesian costs with the defaults: time and memory of a training step, as ratios to the plain network.

    python -m benchmarks.defaults                            # half a minute a network, 2 threads
    python -m benchmarks.defaults --json figures/defaults.json

A step is the mean cross-entropy plus, for Bayesian nets, KL/60,000, its backward pass, and a step of Adam
(``fused=True``, as :func:`mnvi.fit` has it). The networks:

- CNN: Conv 1-16, 16-32 of 3×3, pooled once, Linear 6272-64, 64-10; 128 images of 28×28;
- MLP 784-400-400-10 and 64-100-100-10, 128 examples;
- ResNet-18, 8 images of 3×64×64, 1,000 classes.

Time is measured in turns within one run (see measuring.py). Memory is counted, not measured: the state is parameters,
buffers, gradients and Adam's moments; the peak adds to what lies there before a step what torch allocates within it.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import mnvi
from benchmarks import measuring

NUM_DATA = 60_000
Network = tuple[Callable[[], nn.Module], tuple[int, ...], int]  # what makes it, the shape of a batch, its classes


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n, p in pairwise(sizes):
        layers += [nn.Linear(n, p), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(6272, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm beside the identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet18(classes: int = 1000) -> nn.Module:
    """He et al. (2016, doi:10.1109/CVPR.2016.90), 18 layers."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(channels, width, stride), Block(width, width, 1)]
        channels = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


NETWORKS: dict[str, Network] = {
    "CNN, 128 images of 28x28": (cnn, (128, 1, 28, 28), 10),
    "MLP 784-400-400-10, batch 128": (partial(mlp, 784, 400, 400, 10), (128, 784), 10),
    "MLP 64-100-100-10, batch 128": (partial(mlp, 64, 100, 100, 10), (128, 64), 10),
    "ResNet-18, 8 images of 64x64": (resnet18, (8, 3, 64, 64), 1000),
}


class Step:
    """A training step of one contender."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.is_bayesian = any(mnvi.bayesian_layers(model))
        groups = mnvi.parameter_groups(model) if self.is_bayesian else model.parameters()
        self.optimiser = torch.optim.Adam(groups, lr=1e-3, fused=True)

    def __call__(self) -> None:
        loss = F.cross_entropy(self.model(self.x), self.y)
        if self.is_bayesian:
            loss = loss + mnvi.kl(self.model) / NUM_DATA
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def state(self) -> int:
        """Bytes of parameters, their gradients and Adam's two moments, and buffers."""
        return 4 * _bytes(self.model.parameters()) + _bytes(self.model.buffers())

    def peak(self) -> int:
        """Most bytes within a step: what is there before it, and what torch allocates on top."""
        self()
        self.optimiser.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self()
        now = most = 0
        for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]  # in order of time
            if event.name() == "[memory]":
                now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
                most = max(most, now)
        return 3 * _bytes(self.model.parameters()) + _bytes(self.model.buffers()) + most


def _bytes(tensors) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def steps(make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int) -> dict[str, Step]:
    """The plain network and those made of it."""
    plain = make()
    models = {
        "plain": plain,
        "to_bayesian, defaults": mnvi.to_bayesian(copy.deepcopy(plain)),
        "to_bayesian, estimator local": mnvi.to_bayesian(copy.deepcopy(plain), estimator="local"),
    }
    x, y = torch.randn(shape), torch.randint(0, classes, shape[:1])
    return {name: Step(model, x, y) for name, model in models.items()}


def measure(network: Network, rounds: int, seconds: float) -> measuring.Results:
    """Times and memory of the contenders of one network; ratios are to the plain one."""
    contenders = steps(*network)
    rows = measuring.measure(contenders, rounds, seconds)
    memory = {name: {"state": step.state(), "peak": step.peak()} for name, step in contenders.items()}
    for name, sizes in memory.items():
        for part, size in sizes.items():
            rows[name][f"{part}_mebibytes"] = round(size / 2**20, 2)
            rows[name][f"{part}_ratio"] = round(size / memory["plain"][part], 3)
    return rows


def show_memory(rows: measuring.Results) -> None:
    """Print the table's second half."""
    for name, row in rows.items():
        said = [f"{part} {row[f'{part}_mebibytes']:.2f} MiB ({row[f'{part}_ratio']:.2f})" for part in ("state", "peak")]
        print(f"{name:40s}{', '.join(said)}", flush=True)


def main() -> None:
    parser = measuring.parser(str(__doc__))
    parser.add_argument("--rounds", type=int, default=200, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="for each network (default: %(default)s)")
    parser.add_argument("--only", default="", help="the networks whose name holds this")
    args = parser.parse_args()
    chosen = {title: network for title, network in NETWORKS.items() if args.only in title}
    if not chosen:
        parser.error(f"no network's name holds {args.only!r}; there are: {'; '.join(NETWORKS)}")
    measuring.prepare(args.threads)
    results = {}
    for title, network in chosen.items():
        results[title] = measure(network, args.rounds, args.seconds)
        measuring.show(title, results[title])
        show_memory(results[title])
    measuring.write_json(args.json, {"threads": args.threads, "rounds": args.rounds}, (), results)


if __name__ == "__main__":
    main()
