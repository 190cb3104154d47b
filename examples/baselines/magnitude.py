"""Gradual magnitude pruning of a plain network, what a practitioner would do: the smallest weights or units go first.

More and more is held at zero while the network trains, by the cubic schedule of Zhu & Gupta (2017), arXiv:1710.01878.
Single weights of different layers are compared by LAMP (Lee et al., 2021, arXiv:2010.07611): by their sizes alone whole
layers vanish where little is left.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.common.plain import Masks
from mnvi.sparsity import compact

RAMP = 0.6  # share of the epochs after which no more is pruned; the rest trains what is left


@dataclass(frozen=True)
class Magnitude:
    """``masks(epoch)`` for :func:`examples.common.plain.train_plain`.

    ``units``: whole outputs of the hidden layers go, with what follows from them, and ``left`` counts the weights of
    the smaller network; else single weights do. Either are ranked over all layers, units by the root mean square of
    their weights relative to that of their layer, whose sizes differ.
    """

    network: nn.Module
    left: int
    epochs: int
    units: bool = False

    def masks(self, epoch: int) -> Masks:
        """What stays in this epoch: less and less of what is there, at last about ``left`` weights."""
        whole = sum(layer.weight.numel() for layer in layers(self.network))
        last = max(1.0, min(RAMP * self.epochs, self.epochs - 1))
        t = min(1.0, epoch / last)
        target = self.left + (whole - self.left) * (1 - t) ** 3
        return self._smaller(round(target)) if self.units else largest(self.network, round(target))

    def _smaller(self, target: int) -> Masks:
        """The units to keep so that the compact network has at most ``target`` weights, by bisection of their count."""
        scores = unit_scores(self.network)
        ranked = torch.cat(scores).sort(descending=True).values
        few, many = 0, len(ranked)  # at most ``few`` units are known to fit
        while few < many:
            middle = (few + many + 1) // 2
            masks = above(self.network, scores, ranked[middle - 1].item())
            few, many = (middle, many) if weights_after(self.network, masks) <= target else (few, middle - 1)
        return above(self.network, scores, ranked[max(few, 1) - 1].item())


def layers(network: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers with weights, in order; the last one's units are the outputs."""
    return [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@torch.no_grad()
def largest(network: nn.Module, count: int) -> Masks:
    """The ``count`` weights of all layers with the largest scores."""
    scores = [lamp(layer.weight) for layer in layers(network)]
    together = torch.cat([each.flatten() for each in scores])
    least = together.topk(max(1, min(count, len(together)))).values[-1]
    return {layer.weight: score >= least for layer, score in zip(layers(network), scores, strict=True)}


def lamp(weight: Tensor) -> Tensor:
    """w² over the sum of all squares in the layer that are not smaller: 1 for the largest weight of every layer."""
    squares, order = weight.double().square().flatten().sort(descending=True)
    scores = squares / squares.cumsum(0).clamp_min(torch.finfo(squares.dtype).tiny)
    return torch.empty_like(scores).scatter_(0, order, scores).view_as(weight)


@torch.no_grad()
def unit_scores(network: nn.Module) -> list[Tensor]:
    """Of each hidden layer the root mean square of every unit's weights, relative to the layer's."""
    squares = [layer.weight.flatten(1).square().mean(1) for layer in layers(network)[:-1]]
    return [(each / each.mean().clamp_min(torch.finfo(each.dtype).tiny)).sqrt() for each in squares]


@torch.no_grad()
def above(network: nn.Module, scores: list[Tensor], least: float) -> Masks:
    """Masks of the units that score at least that, and of the best one of every layer; of their biases too."""
    masks: dict[Tensor, Tensor] = {}
    for layer, score in zip(layers(network), scores, strict=False):
        keep = (score >= least) | (score == score.max())
        masks[layer.weight] = keep.view(-1, *[1] * (layer.weight.dim() - 1)).expand_as(layer.weight)
        if layer.bias is not None:
            masks[layer.bias] = keep
    return masks


def weights_after(network: nn.Module, masks: Masks) -> int:
    """How many weights the compact network would have with these masks."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    masked = copy.deepcopy(network)
    with torch.no_grad():
        for parameter, keep in masks.items():
            masked.get_parameter(names[parameter]).mul_(keep)
    return sum(layer.weight.numel() for layer in layers(compact(masked)))
