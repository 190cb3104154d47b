"""The copying problem, short: an orthogonal recurrent layer beside torch's RNN and LSTM.

    python examples/orthogonal_rnn.py  # 20 seconds, no data

Five random letters, ninety-nine blanks and a marker come in; at the end the letters are to come out. Without a memory
the best loss is the baseline, which is printed as 1. The published sizes are in `examples.papers.copying`.
"""

import math
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import RMSprop

from mnvi.rnn import OrthogonalRNN

LETTERS = 8  # and a blank, 0, and a marker, 9


@dataclass(frozen=True)
class Settings:
    count: int = 5  # letters to remember
    length: int = 100  # steps to remember them over
    hidden: int = 64  # states; the LSTM has half as many, which gives it about as many parameters
    steps: int = 300
    batch_size: int = 32
    lr: float = 2e-3
    kernel_lr: float = 2e-4  # a tenth, of what the orthogonal kernel is made from
    seed: int = 0


class Network(nn.Module):
    """A recurrent layer with nn.RNN's call, and a linear one on its states."""

    def __init__(self, recurrent: nn.RNN | nn.LSTM | OrthogonalRNN) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(recurrent.hidden_size, LETTERS + 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.recurrent(x)
        return self.head(output)


def main(settings: Settings) -> dict[str, float]:
    """Train the three; returns their last loss as a share of the baseline."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # vanishing gradients would slow down the baselines
    inputs = LETTERS + 2
    layers = {
        "OrthogonalRNN": lambda: OrthogonalRNN(inputs, settings.hidden),
        "nn.RNN": lambda: nn.RNN(inputs, settings.hidden),
        "nn.LSTM": lambda: nn.LSTM(inputs, settings.hidden // 2),
    }
    return {name: train(name, make, settings) for name, make in layers.items()}


def train(name: str, make, settings: Settings) -> float:
    torch.manual_seed(settings.seed)
    model = Network(make())
    kernel = list(model.recurrent.kernels.parameters()) if isinstance(model.recurrent, OrthogonalRNN) else []
    others = [p for p in model.parameters() if all(p is not each for each in kernel)]
    optimizer = RMSprop([{"params": others}, {"params": kernel, "lr": settings.kernel_lr}], lr=settings.lr)
    baseline = settings.count * math.log(LETTERS) / (settings.length + 2 * settings.count)
    size = sum(p.numel() for p in model.parameters())
    share = math.nan
    for step in range(settings.steps):
        x, y = sequences(settings)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share = loss.item() / baseline
        if step % 10 == 9:
            text = f"{name:14} {size:6,} parameters, step {step + 1:4}: {share:7.3f} of the loss without a memory"
            print(f"\r{text}", end="", flush=True)
    print()
    return share


def sequences(settings: Settings) -> tuple[Tensor, Tensor]:
    """One-hot inputs (time, batch, 10) and target classes (time, batch); all new at every step."""
    length, count = settings.length, settings.count
    letters = torch.randint(1, LETTERS + 1, (count, settings.batch_size))
    x = torch.zeros(length + 2 * count, settings.batch_size, dtype=torch.long)
    y = torch.zeros_like(x)
    x[:count], x[count + length - 1], y[-count:] = letters, LETTERS + 1, letters
    return F.one_hot(x, LETTERS + 2).float(), y


if __name__ == "__main__":
    sys.exit(__doc__) if sys.argv[1:] else main(Settings())
