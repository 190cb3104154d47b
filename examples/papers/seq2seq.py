"""A recurrent encoder and decoder with additive attention, as the CWY paper has them for translation.

Source: Likhosherstov, Davis, Choromanski & Weller, 'CWY parametrization' (2021), section 4.1 and figure 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mnvi
from examples.papers.recurrent import KERNELS
from examples.papers.sentences import EOS, PAD, SOS
from mnvi.parametrizations import CWY, Cayley, Parametrization
from mnvi.rnn import OrthogonalRNN

GATED: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[int, int], nn.Module]]] = {
    "rnn": (nn.RNN, nn.RNNCell),
    "gru": (nn.GRU, nn.GRUCell),
    "lstm": (nn.LSTM, nn.LSTMCell),
}
UNITS = (*GATED, "dtriv1", "dtriv100", "dtriv-inf", "exprnn", "scornn", "cwy", "rgd")
NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu, "abs": torch.abs}
State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c) of an LSTM, each (batch, N)


class Memory(NamedTuple):
    """The encoder's states and what of the attention is the same at every step of the decoder."""

    states: Tensor  # h_i^e, (batch, source time, N), zeros where there is padding
    keys: Tensor  # W₁ h_i^e, the same shape
    padding: Tensor  # True where there is no word, (batch, source time)


class Attention(nn.Module):
    """c = Σ α_i h_i^e with α_i ∝ exp(vᵀ tanh(W₁ h_i^e + W₂ h^d)), over the words that are not padding."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.of_memory = nn.Linear(hidden, hidden, bias=False)
        self.of_state = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)

    def memory(self, states: Tensor, padding: Tensor) -> Memory:
        return Memory(states, self.of_memory(states), padding)

    def forward(self, h: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The context c (batch, N) and the weights α (batch, source time)."""
        scores = self.v((memory.keys + self.of_state(h)[:, None]).tanh()).squeeze(-1)
        alpha = scores.masked_fill(memory.padding, -torch.inf).softmax(-1)
        return (alpha[:, None] @ memory.states).squeeze(1), alpha


class OrthogonalCell(OrthogonalRNN):
    """An OrthogonalRNN of one layer taken a step at a time, with a nonlinearity of ``NONLINEARITIES``."""

    def stepper(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What makes h_t of x_t (batch, m) and h_{t−1}. The kernel is mapped here, once for all steps."""
        kernel, sigma = self.kernel_factors(), NONLINEARITIES[self.nonlinearity]

        def step(x: Tensor, h: Tensor) -> Tensor:
            z = self.inputs[0](x)
            if len(kernel) == 1:
                return sigma(torch.addmm(z, h, kernel[0].mT))
            u, p = kernel  # Q = I − UᵀP
            return sigma(torch.addmm(z + h, h @ p.mT, u, alpha=-1))

        return step


class Seq2Seq(nn.Module):
    """From a sentence to the next word of its translation.

    Encoder and decoder are two recurrent layers. The decoder begins at the encoder's last state, reads the embedding of
    the previous word, <sos> at first, together with the context c_t, and a linear layer makes the logits of h_t^d. The
    input maps of all units start as those of nn.RNN, uniform within ±1/√N.

    Args:
        unit: one of ``UNITS``, or ``cwy:L`` for L reflections.
        source_words, target_words: sizes of the vocabularies.
        embedding, hidden: features of a word and of a state, N.
        nonlinearity: of orthogonal units, one of ``NONLINEARITIES``.
    """

    def __init__(
        self,
        unit: str,
        source_words: int,
        target_words: int,
        embedding: int,
        hidden: int,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__()
        self.source = nn.Embedding(source_words, embedding)
        self.target = nn.Embedding(target_words, embedding)
        self.encoder, self.decoder = _layers(unit, embedding, hidden, nonlinearity)
        self.attention = Attention(hidden)
        self.head = nn.Linear(hidden, target_words)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (words, target_words) of all words of the targets but padding, and which they are, (words,).

        Args:
            source: indices (batch, source time), padded with ``PAD`` after the last.
            target: the same of the translations; each word is predicted from the true ones before.
        """
        memory, state = self.encode(source)
        previous = F.pad(target[:, :-1], (1, 0), value=SOS)
        step, states = self.stepper(), []
        for word in self.target(previous).unbind(1):
            state, _ = step(word, state, memory)
            states.append(_visible(state))
        real = target != PAD
        return self.head(torch.stack(states, 1)[real]), target[real]

    def encode(self, source: Tensor) -> tuple[Memory, State]:
        """What the attention is over, and the state after the last word."""
        padding = source == PAD
        lengths = (~padding).sum(1).cpu()
        packed = pack_padded_sequence(self.source(source), lengths, batch_first=True, enforce_sorted=False)
        output, last = self.encoder(packed)
        states, _ = pad_packed_sequence(output, batch_first=True, total_length=source.shape[1])
        state = (last[0][0], last[1][0]) if isinstance(last, tuple) else last[0]
        return self.attention.memory(states, padding), state

    def stepper(self) -> Callable[[Tensor, State, Memory], tuple[State, Tensor]]:
        """What makes the decoder's next state, and the attention's weights, of an embedding and the state before."""
        advance: Callable = self.decoder.stepper() if isinstance(self.decoder, OrthogonalCell) else self.decoder

        def step(word: Tensor, state: State, memory: Memory) -> tuple[State, Tensor]:
            context, alpha = self.attention(_visible(state), memory)
            return advance(torch.cat([word, context], 1), state), alpha

        return step

    @torch.no_grad()
    def translate(self, source: Tensor, max_length: int = 50) -> tuple[Tensor, Tensor]:
        """The likeliest next word, one after the other.

        Returns:
            Indices (batch, time), ``PAD`` after <eos>, and the attention's weights (batch, time, source time).
        """
        memory, state = self.encode(source)
        step, words, alphas = self.stepper(), [], []
        word = torch.full_like(source[:, 0], SOS)
        over = torch.zeros_like(word, dtype=torch.bool)
        while len(words) < max_length and not over.all():
            state, alpha = step(self.target(word), state, memory)
            word = self.head(_visible(state)).argmax(1).masked_fill(over, PAD)
            over = over | (word == EOS)
            words.append(word)
            alphas.append(alpha)
        return torch.stack(words, 1), torch.stack(alphas, 1)

    def kernel_points(self) -> list[nn.Parameter]:
        """The kernels that are points of a manifold themselves, of the unit rgd."""
        layers = (layer for layer in (self.encoder, self.decoder) if isinstance(layer, OrthogonalRNN))
        return [layer.kernels[0].weight for layer in layers if not is_parametrized(layer.kernels[0])]  # type: ignore[misc]


def kernel(unit: str, hidden: int) -> Parametrization | nn.Linear:
    """The recurrent kernel of an orthogonal unit.

    Raises:
        ValueError: there is no such unit, or it has more reflections than states.
    """
    name, _, reflections = unit.partition(":")
    if name == "cwy" and reflections:
        if not reflections.isdecimal() or reflections[0] == "0" or int(reflections) > hidden:
            raise ValueError(f"cwy:L needs 1 to {hidden} reflections, the hidden size, got {unit!r}")
        return CWY(int(reflections), init="henaff")
    if reflections or unit not in UNITS or unit in GATED:
        raise ValueError(f"methods must be of {', '.join(UNITS)} and cwy:L, got {unit!r}")
    if unit != "rgd":
        return KERNELS[unit](hidden, "henaff")
    start = mnvi.constrain(nn.Linear(hidden, hidden, bias=False), "weight", Cayley(init="henaff"))
    return remove_parametrizations(start, "weight")  # type: ignore[return-value]


def _layers(unit: str, embedding: int, hidden: int, nonlinearity: str) -> tuple[nn.Module, nn.Module]:
    if unit in GATED:
        layer, cell = GATED[unit]
        return layer(embedding, hidden), cell(embedding + hidden, hidden)
    encoder = OrthogonalRNN(embedding, hidden, kernel=kernel(unit, hidden), nonlinearity=nonlinearity)
    decoder = OrthogonalCell(embedding + hidden, hidden, kernel=kernel(unit, hidden), nonlinearity=nonlinearity)
    for layer in (encoder, decoder):
        nn.init.uniform_(layer.inputs[0].weight, -(hidden**-0.5), hidden**-0.5)  # type: ignore[arg-type]
    return encoder, decoder


def _visible(state: State) -> Tensor:
    """The part of the state that the attention and the linear layer see."""
    return state[0] if isinstance(state, tuple) else state
