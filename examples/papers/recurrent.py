"""The recurrent networks that the examples compare, and the optimisers of their published runs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

import mnvi
from mnvi.manifolds import SpecialOrthogonal
from mnvi.parametrizations import CWY, Cayley, Exponential, ScaledCayley, Trivialization
from mnvi.rnn import OrthogonalRNN

COMPLEX = ("scurnn",)
KERNELS: dict[str, Callable[[int, str], mnvi.parametrizations.Parametrization]] = {
    "dtriv1": lambda n, init: dtriv(1, init),
    "dtriv100": lambda n, init: dtriv(100, init),
    "dtriv-inf": lambda n, init: dtriv(None, init),
    "exprnn": lambda n, init: Exponential(init=init),
    "scornn": lambda n, init: ScaledCayley(n // 2, init="cayley"),
    "scurnn": lambda n, init: ScaledCayley(init="cayley"),
    "cwy": lambda n, init: CWY(n, init=init),
}
POINTS = ("rgd", "srcd-u", "srcd-gs", "block-gs", "block-gs-disjoint")  # kernels that are points for an optimiser
GATED = ("lstm", "gru", "rnn")
METHODS = (*KERNELS, *POINTS, *GATED)


def dtriv(rebase_every: int | None, init: str) -> Trivialization:
    return Trivialization(SpecialOrthogonal(retraction="exp"), rebase_every, project_every=100, init=init)


class Network(nn.Module):
    """A recurrent layer and a linear one.

    Args:
        method: one of ``METHODS``.
        input_size, hidden_size, outputs: features.
        init: initialiser of an orthogonal kernel.
        nonlinearity: of a layer with such a kernel, except those of ``COMPLEX``, which have modReLU.
    """

    def __init__(
        self,
        method: str,
        input_size: int,
        hidden_size: int,
        outputs: int,
        init: str = "henaff",
        nonlinearity: str = "modrelu",
    ) -> None:
        super().__init__()
        self.recurrent = _recurrent(method, input_size, hidden_size, init, nonlinearity)
        self.head = nn.Linear(hidden_size * (2 if method in COMPLEX else 1), outputs)

    def forward(self, x) -> Tensor:
        """The outputs at every step, (time, batch, outputs)."""
        return self.head(_real(self.recurrent(x)[0]))

    def last(self, x: Tensor) -> Tensor:
        """The outputs after the last step, (batch, outputs)."""
        h = self.recurrent(x)[1]
        return self.head(_real((h[0] if isinstance(h, tuple) else h)[-1]))

    def kernel_parameters(self) -> list[nn.Parameter]:
        """What the orthogonal kernel is made from; none of a network without one."""
        return list(self.recurrent.kernels.parameters()) if isinstance(self.recurrent, OrthogonalRNN) else []

    def other_parameters(self) -> list[nn.Parameter]:
        kernel = {id(parameter) for parameter in self.kernel_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in kernel]


def parameters(model: nn.Module) -> int:
    """How many numbers are trained; those that a rotation has, where they are stored as a skew-symmetric matrix."""
    count = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
    for module in model.modules():
        if isinstance(module, Trivialization) and module.layout is not None:
            n = module.layout.size[-1]
            count -= n * (n + 1) // 2
    return count


def adaptive(model: Network, lr: float, kernel_lr: float, *, adam: bool = False) -> dict[str, Optimizer]:
    """RMSprop for the kernel, and RMSprop (or Adam) for the rest, with torch's defaults."""
    rest = (Adam if adam else RMSprop)(model.other_parameters(), lr=lr)
    kernel = model.kernel_parameters()
    return {"optimiser": rest, "kernel optimiser": RMSprop(kernel, lr=kernel_lr)} if kernel else {"optimiser": rest}


def _recurrent(method: str, input_size: int, hidden_size: int, init: str, nonlinearity: str) -> nn.Module:
    if method in GATED:
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[method]
        return kind(input_size, hidden_size)
    if method in KERNELS:
        kernel = KERNELS[method](hidden_size, init)
        options = {"nonlinearity": "modrelu", "dtype": torch.complex64} if method in COMPLEX else {}
        return OrthogonalRNN(input_size, hidden_size, kernel=kernel, **{"nonlinearity": nonlinearity, **options})
    if method not in POINTS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    # A point of the manifold itself, which starts at the Cayley transform of the initialiser's matrix.
    start = nn.Linear(hidden_size, hidden_size, bias=False)
    mnvi.constrain(start, "weight", Cayley(init=init))
    nn.utils.parametrize.remove_parametrizations(start, "weight")
    return OrthogonalRNN(input_size, hidden_size, kernel=start, nonlinearity=nonlinearity)


def _real(states: Tensor) -> Tensor:
    return torch.view_as_real(states).flatten(-2) if states.is_complex() else states
