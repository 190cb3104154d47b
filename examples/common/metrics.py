"""How good, how calibrated and how fast a classifier is."""

import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import mnvi
from examples.common.batch_norms import draw, has_batch_norms

CHUNK = 500  # images in memory at once


def probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities (N, classes) in eval mode: of a Bayesian network, at the mean weights."""
    return _logits(network.eval(), x).softmax(1)


@torch.inference_mode()
def _logits(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x.split(CHUNK)])


def sampled_logits(model: nn.Module, x: Tensor, num_samples: int, images: Tensor) -> Tensor:
    """Logits (S, N, classes) of draws of the weights.

    Batch norms have the statistics of the training ``images`` under each draw.
    """
    if has_batch_norms(model):
        return torch.stack([_logits(draw(model, images), x) for _ in tqdm(range(num_samples), desc="draws")])
    batches = DataLoader(x.split(CHUNK // 2), batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]
    draws = mnvi.predict(model, batches, num_samples, chunk_size=8).draws
    assert isinstance(draws, Tensor)
    return draws


def mixture(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Class probabilities (N, classes) averaged over draws (S, N, classes), each at the ``temperature``."""
    return (logits / temperature).softmax(2).mean(0)


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature of every draw (S, N, classes) at which the held-out labels ``y`` are most probable."""
    return mnvi.likelihoods.Categorical().calibrate_(logits, y)


def evaluate(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy in percent, mean negative log-likelihood in nats, expected calibration error in percent."""
    return {"accuracy": accuracy(probs, y), "nll": nll(probs, y), "ece": calibration_error(probs, y)}


def accuracy(probs: Tensor, y: Tensor) -> float:
    """Percentage of the images whose most probable class is ``y``."""
    return 100 * (probs.argmax(1) == y).double().mean().item()


def nll(probs: Tensor, y: Tensor) -> float:
    """−mean log p(y), in nats; a probability that float32 rounded to 0 counts as the smallest normal number."""
    chosen = probs.gather(1, y[:, None]).clamp_min(torch.finfo(probs.dtype).tiny)
    return -chosen.double().log().mean().item()


def calibration_error(probs: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error in percent, Σ_b (n_b/N)·|accuracy_b − confidence_b|, over equal bins of confidence.

    Source: Guo et al. (2017), equation 3.
    """
    confidence, predicted = probs.double().max(1)
    gap = (predicted == y).double() - confidence
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b is ((b)/bins, (b+1)/bins]
    sums = torch.zeros(bins, dtype=gap.dtype).index_add(0, which, gap)
    return 100 * sums.abs().sum().item() / len(y)


@torch.inference_mode()
def latency(network: nn.Module, x: Tensor, repeats: int = 100) -> float:
    """Median milliseconds of one call on the whole batch ``x``, with the current number of threads."""
    network.eval()
    times = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        network(x)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[5:])  # the first calls allocate
