"""Laplace's approximation of the last layer's posterior. Source: Daxberger et al. (2021), arXiv:2106.14806.

It is the authors' package, laplace-torch, which ``requirements.txt`` beside this file brings.
"""

import copy
import warnings
from importlib import import_module

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.baselines.draws import Draws, Training


def last_layer(model: nn.Module, training: Training, *, structure: str = "kron", samples: int = 64) -> Draws:
    """The posterior of the last linear layer around its trained weights, its prior by the marginal likelihood.

    Args:
        model: trained, and classifying; a copy is used, without more training.
        structure: of the generalized Gauss-Newton matrix: ``"kron"``, ``"full"`` or ``"diag"``.
        samples: draws of the layer's weights, the same ones for all inputs.
    """
    posterior = fitted(model, training, structure)
    weights = posterior.sample(samples)  # (S, C·(F + 1)), or C·F of a layer without bias

    def draws(x: Tensor) -> Tensor:
        _, features = posterior.model.forward_with_features(x)
        classes = posterior.model.last_layer.out_features
        matrix, bias = weights.tensor_split([classes * features.shape[1]], 1)
        logits = features @ matrix.unflatten(1, (classes, -1)).mT
        return logits + bias[:, None] if bias.numel() else logits

    return draws


def fitted(model: nn.Module, training: Training, structure: str):
    """The package's own object, of a copy of ``model``."""
    if training.likelihood != "categorical":
        raise ValueError(f'the likelihood must be "categorical", got {training.likelihood!r}')
    options = {"subset_of_weights": "last_layer", "hessian_structure": structure}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", "By default `link_approx`", UserWarning)  # which draws do not need
        posterior = import_module("laplace").Laplace(copy.deepcopy(model).eval(), "classification", **options)
        posterior.fit(DataLoader(TensorDataset(*training.data), training.batch_size))
        posterior.optimize_prior_precision(method="marglik")
    return posterior
