"""The nonlinearities of recurrent states, each with its derivative written by hand, in place on one time step."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Nonlinearity(ABC):
    """h = σ(z), elementwise. Its derivative is found from h, or from z where ``needs_input`` says so.

    ``bias`` is the parameter b of a σ that has one, and None for the others.
    """

    has_bias = False  # whether σ has a parameter b of shape (n,) of its own
    needs_input = False
    real = False  # whether states must be

    @abstractmethod
    def __call__(self, z: Tensor, bias: Any) -> Tensor:
        """σ(z), by operations that torch differentiates."""

    @abstractmethod
    def forward_(self, z: Tensor, bias: Any) -> Tensor:
        """σ(z), in place; z has shape (batch, n)."""

    @abstractmethod
    def backward_(self, g: Tensor, h: Tensor, bias: Any, bias_grad: Any) -> Tensor:
        """The gradient for z from that for h, in place; that for the bias, before its sum over the batch, is added
        to ``bias_grad``. ``h`` is z where ``needs_input``."""


class Tanh(Nonlinearity):
    """tanh z."""

    def __call__(self, z: Tensor, bias: Any) -> Tensor:
        return z.tanh()

    def forward_(self, z: Tensor, bias: Any) -> Tensor:
        return z.tanh_()

    def backward_(self, g: Tensor, h: Tensor, bias: Any, bias_grad: Any) -> Tensor:
        return g.addcmul_(g, (h * h).conj(), value=-1)


class ReLU(Nonlinearity):
    """max(z, 0), of real states."""

    real = True

    def __call__(self, z: Tensor, bias: Any) -> Tensor:
        return z.relu()

    def forward_(self, z: Tensor, bias: Any) -> Tensor:
        return z.relu_()

    def backward_(self, g: Tensor, h: Tensor, bias: Any, bias_grad: Any) -> Tensor:
        return g.mul_(h.sign())


class Abs(Nonlinearity):
    """|z|, of real states, which keeps norms (Dorobantu, Stromhaug & Renteria, 2016, arXiv:1612.04035)."""

    needs_input = True
    real = True

    def __call__(self, z: Tensor, bias: Any) -> Tensor:
        return z.abs()

    def forward_(self, z: Tensor, bias: Any) -> Tensor:
        return z.abs_()

    def backward_(self, g: Tensor, h: Tensor, bias: Any, bias_grad: Any) -> Tensor:
        return g.mul_(h.sign())


class ModReLU(Nonlinearity):
    """z/|z|·max(|z| + b, 0), real or complex (Arjovsky, Shah & Bengio, 2016, arXiv:1511.06464, equation 8)."""

    has_bias = True

    def __call__(self, z: Tensor, bias: Any) -> Tensor:
        return z.sgn() * (z.abs() + bias).relu()

    def forward_(self, z: Tensor, bias: Any) -> Tensor:
        size = z.abs().add_(bias).relu_()
        return z.sgn_().mul_(size)

    def backward_(self, g: Tensor, h: Tensor, bias: Any, bias_grad: Any) -> Tensor:
        direction = h.sgn()  # 0 where the unit is off
        if not h.is_complex():
            bias_grad += g.mul_(direction)
            return g.mul_(direction)
        turned = g.mul_(direction.conj())
        bias_grad += turned.real
        size = h.abs()
        # Along the direction of z the slope is 1, across it |h|/|z|, where |z| = |h| − b.
        turned.imag.mul_(torch.where(size > 0, size / (size - bias), 0))
        return turned.mul_(direction)


NONLINEARITIES: dict[str, type[Nonlinearity]] = {"modrelu": ModReLU, "tanh": Tanh, "relu": ReLU, "abs": Abs}
