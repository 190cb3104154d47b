"""The runs of sparse_networks.py: for each of its networks the families, priors and methods, with their options."""

from dataclasses import dataclass

FAMILIES = {"diagonal": "diagonal", "mn": "mn", "both": "mn+diagonal", "corrected": "corrected"}

MNIST = "--data mnist --noise 0.15 --epochs 100 --finetune 20"
LENET5 = "--data mnist --model lenet5 --augment --plain-epochs 20 --epochs 40 --finetune 15 --tolerance 0.1"
LENET5 += " --posterior diagonal"
FASHION = "--data fashion_mnist --model cnn --augment --epochs 30 --finetune 40 --kl-weight 0.1"
FASHION += " --hold-tolerance 0.3 --tolerance 0.1"
CIFAR = "--data cifar10 --model vgg --batch-norm --lr 5e-3 --plain-epochs 20"
NORMAL = f"{CIFAR} --prior normal --epochs 30 --hold 1 --finetune 0"
SPARSE = f"{CIFAR} --augment --start plain --kl-weight 0.2 --prior group-ard --epochs 30"
HELD = f"{SPARSE} --hold 0.4 --hold-tolerance 0.5"
WIDE = f"{SPARSE} --width 2 --posterior mn --plain-epochs 10 --epochs 20 --hold 1 --finetune 0 --tolerance 0.5"
MAGNITUDE = "--method magnitude"


@dataclass(frozen=True)
class Run:
    """The options of one run of sparsify.py.

    Attributes:
        options: as on the command line.
        left_of: the run that says how many weights magnitude pruning leaves, "" for other methods.
        trained_as: the run that has trained the same network, to be pruned in another way.
    """

    options: str
    left_of: str = ""
    trained_as: str = ""


def _families(prefix: str, options: str, suffix: str, families: str = "diagonal mn both") -> dict[str, Run]:
    """A run for each family."""
    return {f"{prefix}-{name}-{suffix}": Run(f"{options} --posterior {FAMILIES[name]}") for name in families.split()}


RUNS = {
    # Single weights of an MLP: the slides' figure of accuracy and compression over training.
    "mnist-mn-ard": Run(f"{MNIST} --posterior mn --hold-tolerance 0.5 --tolerance 0.2"),
    "mnist-both-ard": Run(f"{MNIST} --posterior mn+diagonal --hold-tolerance 0.3 --tolerance 0.1"),
    "mnist-diagonal-ard": Run(f"{MNIST} --posterior diagonal --hold-tolerance 0.5 --tolerance 0.1 --finetune 15"),
    "mnist-magnitude": Run(f"{MNIST} {MAGNITUDE}", "mnist-both-ard"),
    # LeNet-5: single weights, and whole units and channels.
    "lenet5-diagonal-ard-larger": Run(f"{LENET5} --kl-weight 0.2 --hold-tolerance 0.2 --tolerance 0.06"),
    "lenet5-diagonal-ard": Run(f"{LENET5} --kl-weight 0.3 --hold-tolerance 0.6 --finetune 20"),
    "lenet5-diagonal-ard-long": Run(
        f"{LENET5} --epochs 100 --kl-weight 0.4 --hold 0.4 --hold-tolerance 0.4 --tolerance 0.2 --finetune 60"
    ),
    "lenet5-magnitude": Run(f"{LENET5} --epochs 100 --finetune 60 {MAGNITUDE}", "lenet5-diagonal-ard-long"),
    "lenet5-units-larger": Run(f"{LENET5} --prior hierarchical --groups both --hold-tolerance 0.3"),
    "lenet5-units": Run(f"{LENET5} --prior hierarchical --groups both --units 5,10,16 --finetune 30"),
    "lenet5-magnitude-units": Run(f"{LENET5} --groups rows {MAGNITUDE}", "lenet5-units-larger"),
    # A small convolutional network on Fashion-MNIST.
    **_families("fashion", FASHION, "ard"),
    "fashion-magnitude": Run(f"{FASHION} {MAGNITUDE}", "fashion-both-ard"),
    # The slides' VGG-like network: Bayesian with one fitted scale a layer, and sparse by group ARD.
    **_families("cifar", NORMAL, "normal", "diagonal mn corrected"),
    **_families("cifar", HELD, "group", "diagonal corrected"),
    "cifar-mn-group": Run(f"{HELD} --kl-weight 0.05 --posterior mn"),
    "cifar-diagonal-group-kl005": Run(f"{HELD} --kl-weight 0.05 --posterior diagonal"),
    "cifar-magnitude": Run(f"{HELD} {MAGNITUDE}", "cifar-diagonal-group"),
    # Its doubled one: single weights; input channels at one position (the slides' rows); outputs (their columns).
    "cifar-wide-free": Run(WIDE),
    "cifar-wide-taps": Run(f"{WIDE} --groups taps", trained_as="cifar-wide-free"),
    "cifar-wide-outputs": Run(f"{WIDE} --groups rows", trained_as="cifar-wide-free"),
}
