"""What a Bayesian layer costs: forward and backward of a training step, as a ratio to plain torch in the same run.

    python -m benchmarks.layers                     # MLP 784-400-400-10 and the VGG-like net, batch 128, 2 threads
    python -m benchmarks.layers --json figures/layers.json

A step is the mean cross-entropy plus, for Bayesian nets, KL/60,000, and its backward pass; no optimiser. Those of mnvi
have dense factors if nothing else is said; what the defaults cost is in defaults.py. All contenders take turns within
each round (see measuring.py). bayesian-torch, BLiTZ and Pyro join in where they are installed.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mnvi
from benchmarks import measuring

Loss = Callable[[Tensor, Tensor], Tensor]
NUM_DATA = 60_000
DENSE = mnvi.posteriors.MatrixNormal()


def mlp(linear: Callable[[int, int], nn.Module]) -> nn.Module:
    return mnvi.Sequential(linear(784, 400), nn.ReLU(), linear(400, 400), nn.ReLU(), linear(400, 10))


def vgg(conv: Callable[[int, int], nn.Module]) -> nn.Module:
    """12 convolutions 3×3 of widths 10·3, 20·3, 40·3, 20·3 and a max-pool after every third; 62,270 weights."""
    modules, channels = [], 3
    for width in (10, 20, 40, 20):
        for _ in range(3):
            modules += [conv(channels, width), nn.ReLU()]
            channels = width
        modules.append(nn.MaxPool2d(2))
    return mnvi.Sequential(*modules, nn.Flatten(), nn.Linear(80, 10))


def elbo(model: nn.Module) -> Loss:
    return lambda x, y: F.cross_entropy(model(x), y) + mnvi.kl(model) / NUM_DATA


def plain(model: nn.Module) -> Loss:
    return lambda x, y: F.cross_entropy(model(x), y)


def mlp_contenders() -> dict[str, tuple[nn.Module, Loss]]:
    families = {
        "mnvi MNLinear": {"posterior": DENSE},
        "mnvi MNLinear, ARD": {"posterior": DENSE, "prior": mnvi.priors.ARD()},
        "mnvi MNLinear, group ARD": {"posterior": DENSE, "prior": mnvi.priors.GroupARD()},
        "mnvi MNLinear, diagonal family": {"posterior": mnvi.posteriors.Diagonal()},
        "mnvi MNLinear, weight estimator": {"posterior": DENSE, "estimator": "weight"},
    }
    models = {"nn.Linear": mlp(nn.Linear)}
    for name, options in families.items():
        models[name] = mlp(lambda i, o, options=options: mnvi.MNLinear(i, o, **options))
    contenders = {name: (model, elbo(model)) for name, model in models.items()}
    contenders["mnvi MNLinear, without KL"] = (model := mlp(partial(mnvi.MNLinear, posterior=DENSE)), plain(model))
    for add in (add_bayesian_torch, add_blitz, add_pyro):
        with suppress(ImportError):
            add(contenders)
    return contenders


def add_bayesian_torch(contenders: dict) -> None:
    from bayesian_torch.layers import LinearFlipout, LinearReparameterization  # type: ignore[import-not-found]

    for kind in (LinearReparameterization, LinearFlipout):
        layers = [kind(784, 400), kind(400, 400), kind(400, 10)]

        def loss(x: Tensor, y: Tensor, layers=layers) -> Tensor:
            total = 0.0
            for i, layer in enumerate(layers):
                x, divergence = layer(F.relu(x) if i else x)
                total = total + divergence
            return F.cross_entropy(x, y) + total / NUM_DATA

        contenders[f"bayesian-torch {kind.__name__}"] = (nn.ModuleList(layers), loss)


def add_blitz(contenders: dict) -> None:
    from blitz.losses import kl_divergence_from_nn  # type: ignore[import-not-found]
    from blitz.modules import BayesianLinear  # type: ignore[import-not-found]

    model = mlp(BayesianLinear)
    contenders["BLiTZ BayesianLinear"] = (
        model,
        lambda x, y: F.cross_entropy(model(x), y) + kl_divergence_from_nn(model) / NUM_DATA,
    )


def add_pyro(contenders: dict) -> None:
    import pyro  # type: ignore[import-not-found]
    import pyro.distributions as dist  # type: ignore[import-not-found]
    from pyro.infer import Trace_ELBO  # type: ignore[import-not-found]
    from pyro.infer.autoguide import AutoDiagonalNormal  # type: ignore[import-not-found]
    from pyro.nn.module import to_pyro_module_  # type: ignore[import-not-found]

    net = mlp(nn.Linear)
    to_pyro_module_(net)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
            setattr(module, name, pyro.nn.PyroSample(prior))

    def model(x: Tensor, y: Tensor) -> None:
        logits = net(x)
        with pyro.plate("data", NUM_DATA, subsample_size=len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoDiagonalNormal(model)
    objective = Trace_ELBO()
    x, y = torch.randn(128, 784), torch.randint(0, 10, (128,))
    guide(x, y)
    contenders["Pyro AutoDiagonalNormal"] = (
        guide,
        lambda x, y: objective.differentiable_loss(model, guide, x, y) / NUM_DATA,
    )


def vgg_contenders() -> dict[str, tuple[nn.Module, Loss]]:
    def conv(kind, **options):
        return lambda i, o: kind(i, o, 3, padding=1, bias=False, **options)

    models = {
        "nn.Conv2d": vgg(conv(nn.Conv2d)),
        "mnvi MNConv2d": vgg(conv(mnvi.MNConv2d, posterior=DENSE)),
        "mnvi MNConv2d, local estimator": vgg(conv(mnvi.MNConv2d, posterior=DENSE, estimator="local")),
    }
    return {name: (model, elbo(model)) for name, model in models.items()}


def step(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> None:
    """One forward and backward pass."""
    for parameter in model.parameters():
        parameter.grad = None
    loss(x, y).backward()


def measure(contenders: dict[str, tuple[nn.Module, Loss]], x: Tensor, rounds: int) -> measuring.Results:
    y = torch.randint(0, 10, (len(x),))
    return measuring.measure({name: partial(step, *each, x, y) for name, each in contenders.items()}, rounds)


def main() -> None:
    parser = measuring.parser(str(__doc__))
    parser.add_argument("--rounds", type=int, default=100, help="rounds of the MLP; the VGG gets a quarter")
    parser.add_argument("--only", default="", help="of the MLPs, time only nn.Linear and those whose name holds this")
    args = parser.parse_args()
    measuring.prepare(args.threads)
    contenders = mlp_contenders()
    chosen = {name: value for name, value in contenders.items() if args.only in name or name == "nn.Linear"}
    results = {"mlp": measure(chosen, torch.randn(128, 784), args.rounds)}
    measuring.show("MLP 784-400-400-10, batch 128, forward and backward", results["mlp"])
    results["vgg"] = measure(vgg_contenders(), torch.randn(128, 3, 32, 32), max(5, args.rounds // 4))
    measuring.show("VGG-like net, batch 128, forward and backward", results["vgg"])
    setting = {"threads": args.threads, "rounds": args.rounds}
    measuring.write_json(args.json, setting, ("bayesian-torch", "blitz-bayesian-pytorch", "pyro-ppl"), results)


if __name__ == "__main__":
    main()
