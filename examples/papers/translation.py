"""Translation with attention: a sequence-to-sequence model of orthogonal layers beside RNN, GRU and LSTM.

    python -m examples.papers.translation --out runs/translation  # Multi30k; six minutes a method, on one core
    python -m examples.papers.translation --data numbers --hidden 64 --epochs 40 --lr 3e-3 --methods gru,cwy:32 \
        --out runs/numbers                                              # number words, no files needed; a minute
    python -m examples.papers.translation --pairs spa.txt --reverse --hidden 1024 --epochs 10 --minutes inf --lr 1e-2 \
        --nonlinearity abs \
        --methods rnn,gru,lstm,scornn,rgd,exprnn,cwy:1024,cwy:512,cwy:256,cwy:128,cwy:64            # as published

An encoder reads the source, a decoder writes the translation a word at a time and looks back through additive
attention; the two are recurrent layers of the same kind (seq2seq.py). The methods are rnn, gru, lstm and orthogonal
kernels: dtriv1, dtriv100, dtriv-inf, exprnn, scornn, rgd, and cwy:L with L reflections. All have the same sizes,
batches, learning rate and budget: --epochs or --minutes, whichever ends first; the minutes include measuring the
validation loss. The test sentences see the weights that were best there.

Multi30k is read from $MNVI_DATA/multi30k. Tatoeba's pairs (manythings.org/anki has them tab-separated) are lower-cased,
lose their accents, and are split 80 to 20 by the seed. Perplexity is the exponential of the cross-entropy of a target
word, <eos> included and padding not, with the true words before it. Words seen less than --min-count times are <unk>,
which counts as any other: perplexities compare only where this count is the same.

The published runs take Adam at 1e-2 and, in orthogonal units, absolute values for the nonlinearity. Here gradients are
clipped, the rate is 3e-3 and the nonlinearity tanh. After 1.5 minutes with --min-count 5 the test perplexity of cwy:128
is 23.2 with absolute values at 1e-3, 9.4 with tanh at 1e-3, and 6.2 with tanh at 3e-3.

A killed run continues where it was, also with more --epochs or --minutes. Methods may run at the same time into one
folder; the figure shows all there are.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from examples.common import checkpoints, command_line
from examples.common.command_line import option, parse
from examples.common.comparison import finished, report
from examples.common.training import Best, clock, train
from examples.papers import sentences
from examples.papers.recurrent import parameters
from examples.papers.sentences import Corpus, Encoded, Vocabulary
from examples.papers.seq2seq import GATED, UNITS, Seq2Seq, kernel
from mnvi.manifolds import Orthogonal
from mnvi.optim import RiemannianSGD

SHOWN = 5  # test sentences whose translation is kept


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on; each field is an option of the command line."""

    methods: str = option(
        "rnn,gru,lstm,cwy:256,cwy:128,cwy:64", f"of {', '.join(UNITS)}, cwy:L; '' only draws the figure"
    )
    data: Literal["multi30k", "numbers"] = option("multi30k", "Multi30k, or number words")
    pairs: str = option(None, "file of tab-separated pairs to translate instead")
    reverse: bool = option(False, "translate from the second language to the first")
    min_count: int = option(2, "words seen less often are <unk>")
    limit: int = option(None, "train on only the first so many pairs")
    hidden: int = option(256, "N, states of encoder and decoder each; published 1024")
    embedding: int = option(256, "features of a word")
    nonlinearity: Literal["tanh", "relu", "abs"] = option("tanh", "of orthogonal units; published abs")
    batch_size: int = option(64, "sentences a step")
    lr: float = option(3e-3, "Adam's rate; published 1e-2")
    kernel_lr: float = option(1e-3, "rate of rgd's steps of the kernels")
    clip: float = option(1.0, "norm that a gradient is cut to")
    epochs: int = option(10, "passes over the training pairs at most")
    minutes: float = option(6.0, "of the processor, for each method, at most")
    every: int = option(200, "steps between two measurements of the validation loss, an epoch's at most")
    seed: int = option(0, "of initial weights, batches and splits")
    threads: int = option(1, "CPU threads")
    device: str = option("cpu", "where to train: cpu, cuda")
    out: str = option("runs/translation", "folder for the results")
    restart: bool = option(False, "begin anew where the folder has a checkpoint")

    def __post_init__(self) -> None:
        command_line.at_least(self, LEAST)
        for name in self.names:
            if name not in GATED:
                kernel(name, self.hidden)

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.methods.split(",") if name.strip()]


SIZES = ("min_count", "limit", "hidden", "embedding", "batch_size", "epochs", "every", "threads")
LEAST = {**dict.fromkeys(SIZES, 1), **dict.fromkeys(("lr", "kernel_lr", "clip", "minutes"), 1e-12)}
OTHER = ("methods", "minutes", "epochs", "threads", "device", "out", "restart")  # a run may go on with others


def main(argv: list[str] | None = None) -> dict:
    """Run the methods that are not done; returns what ``result.json`` holds."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # vanishing gradients would slow down the baselines
    if settings.names:
        corpus = sentences.load(settings.data, settings.pairs, seed=settings.seed, reverse=settings.reverse)
        folder = checkpoints.prepare(settings.out)
        for name in settings.names:
            run(name, corpus, settings, folder)
    return collect(checkpoints.prepare(settings.out))


def run(method: str, corpus: Corpus, settings: Settings, folder: Path) -> None:
    """Train one model and write ``method.json``."""
    torch.manual_seed(settings.seed)
    pairs = corpus.train[: settings.limit]
    source, target = (Vocabulary((pair[side] for pair in pairs), settings.min_count) for side in (0, 1))
    training, validation, test = (Encoded(part, source, target) for part in (pairs, corpus.validation, corpus.test))
    model = Seq2Seq(method, len(source), len(target), settings.embedding, settings.hidden, settings.nonlinearity)
    model = model.to(command_line.device(settings.device))
    best = Best(model)
    optimisers = _optimisers(model, settings)
    epoch_steps = math.ceil(len(pairs) / settings.batch_size)
    total, every = settings.epochs * epoch_steps, min(settings.every, epoch_steps)
    order: dict[int, list[list[int]]] = {}  # batches of the present epoch

    def step(i: int) -> dict[str, float]:
        start = clock()
        epoch, batch = divmod(i, epoch_steps)
        if epoch not in order:
            order.clear()
            generator = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
            order[epoch] = training.batches(settings.batch_size, generator)
        logits, words = model(*training.batch(order[epoch][batch], settings.device))
        loss = F.cross_entropy(logits, words)
        model.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), settings.clip)
        for optimiser in optimisers.values():
            optimiser.step()
        row = {"loss": loss.item(), "seconds": clock() - start}
        if (i + 1) % every == 0 or i + 1 == total:
            row["validation"] = measure(model, validation, settings)["cross-entropy"]
            best.compare(row["validation"])
        return row

    fixed = {key: value for key, value in asdict(settings).items() if key not in OTHER} | {"corpus": corpus.title}
    parts = {"model": model, "best": best, **optimisers}
    options = {"title": method, "minutes": settings.minutes, "restart": settings.restart}
    history = train(folder / f"{_stem(method)}.pt", parts, fixed, total, step, **options)["history"]
    if "validation" not in history[-1]:  # stopped by the clock
        history[-1]["validation"] = measure(model, validation, settings)["cross-entropy"]
        best.compare(history[-1]["validation"])
    model.load_state_dict(best.weights)
    result = {
        **{"method": method, "settings": fixed, "threads": settings.threads, "versions": checkpoints.versions()},
        **{"corpus": corpus.title, "pairs": len(pairs), "words": [len(source), len(target)]},
        **{"parameters": parameters(model), "steps": len(history), "epochs": len(history) / epoch_steps},
        **{"seconds": sum(row["seconds"] for row in history), "curve": curve(history, epoch_steps)},
        **{"validation": best.error, "test": measure(model, test, settings)},
        "translations": translations(model, corpus.test[:SHOWN], source, target, settings),
    }
    checkpoints.write_json(folder / f"{_stem(method)}.json", result)


def _optimisers(model: Seq2Seq, settings: Settings) -> dict[str, Optimizer]:
    """Adam, and Riemannian gradient descent for kernels that are points of the orthogonal group."""
    points = model.kernel_points()
    others = [p for p in model.parameters() if not any(p is point for point in points)]
    optimisers: dict[str, Optimizer] = {"optimiser": Adam(others, lr=settings.lr)}
    if points:
        manifold = Orthogonal(retraction="cayley")
        groups = [{"params": [point], "manifold": manifold} for point in points]
        optimisers["kernel optimiser"] = RiemannianSGD(groups, lr=settings.kernel_lr)
    return optimisers


@torch.no_grad()
def measure(model: Seq2Seq, pairs: Encoded, settings: Settings) -> dict[str, float]:
    """Cross-entropy of a word in nats, its exponential, and the share of words in per cent that are the likeliest."""
    nats, right, count = 0.0, 0, 0
    for indices in pairs.batches(settings.batch_size):
        logits, words = model(*pairs.batch(indices, settings.device))
        nats += F.cross_entropy(logits, words, reduction="sum").item()
        right += int((logits.argmax(1) == words).sum())
        count += len(words)
    loss = nats / count
    return {"cross-entropy": loss, "perplexity": float(np.exp(loss)), "accuracy": 100 * right / count}


def curve(history: list[dict], epoch_steps: int) -> dict[str, list[float]]:
    """The validation loss, and the epochs and seconds of training until then."""
    seconds = np.cumsum([row["seconds"] for row in history])
    at = [i for i, row in enumerate(history) if "validation" in row]
    return {
        "epochs": [(i + 1) / epoch_steps for i in at],
        "seconds": [float(seconds[i]) for i in at],
        "validation": [history[i]["validation"] for i in at],
    }


def translations(model: Seq2Seq, pairs: list, source: Vocabulary, target: Vocabulary, settings: Settings) -> list[dict]:
    """Sources, references, outputs, and the attention's weights (output words and <eos>, source words and <eos>)."""
    found = []
    for words, reference in pairs:
        indices = torch.tensor([source.encode(words)], device=settings.device)
        output, alphas = model.translate(indices)
        rows = [[round(a, 4) for a in row] for row in alphas[0].tolist()]
        found.append(
            {"source": words, "reference": reference, "output": target.decode(output[0].tolist()), "attention": rows}
        )
    return found


def collect(folder: Path) -> dict:
    """Put all methods' results in ``folder`` into ``result.json`` and ``translation.png``."""
    stems = [path.stem for path in sorted(folder.glob("*.json")) if path.stem != "result"]
    runs = {each["method"]: each for each in finished(folder, stems).values()}
    for name, each in runs.items():
        test = each["test"]
        print(
            f"{name:9} {each['parameters']:11,} parameters {each['epochs']:6.2f} epochs {each['seconds']:7.0f} s   "
            f"test: cross-entropy {test['cross-entropy']:.3f}, perplexity {test['perplexity']:.2f}, "
            f"accuracy {test['accuracy']:.1f} %"
        )
    if runs:
        winner = best_of(runs)
        for each in winner["translations"]:
            print("", *(f"{key:9} {' '.join(each[key])}" for key in ("source", "reference", "output")), sep="\n")
        print(f"\ntranslated by {winner['method']}")
    return report(folder, "translation", {"runs": runs}, lambda path: figure(path, runs))


def best_of(runs: dict[str, dict]) -> dict:
    """The run with the least cross-entropy on the test sentences."""
    return min(runs.values(), key=lambda each: each["test"]["cross-entropy"])


def figure(path: Path, runs: dict[str, dict]) -> None:
    """Validation perplexity over epochs and seconds, test perplexity, and the attention of the best on one sentence."""
    winner = best_of(runs)
    colors = {name: f"C{i % 10}" for i, name in enumerate(runs)}
    canvas = Figure(figsize=(11, 9), dpi=150, layout="constrained")
    (over_epochs, over_seconds), (bars, attention) = canvas.subplots(2, 2)
    for axes, key in ((over_epochs, "epochs"), (over_seconds, "seconds")):
        for name, each in runs.items():
            axes.semilogy(
                each["curve"][key], np.exp(each["curve"]["validation"]), color=colors[name], marker=".", label=name
            )
        axes.set(
            xlabel={"epochs": "epoch", "seconds": "seconds of the processor"}[key],
            ylabel="validation perplexity",
            xlim=(0, None),
        )
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    over_epochs.legend(frameon=False)
    _bars(bars, runs, colors)
    _attention(attention, min(winner["translations"], key=lambda each: abs(len(each["output"]) - 10)), winner["method"])
    canvas.suptitle(f"{winner['corpus']}, hidden size {winner['settings']['hidden']}", fontsize=13)
    canvas.savefig(path)


def _bars(axes: Axes, runs: dict[str, dict], colors: dict[str, str]) -> None:
    names = sorted(runs, key=lambda name: -runs[name]["test"]["perplexity"])
    perplexities = [runs[name]["test"]["perplexity"] for name in names]
    drawn = axes.barh(names, perplexities, color=[colors[name] for name in names])
    labels = [
        f"{p:.2f}, {runs[n]['parameters'] / 1e6:.2f} M parameters" for p, n in zip(perplexities, names, strict=True)
    ]
    axes.bar_label(drawn, labels, padding=3, fontsize=8)
    axes.set(xlabel="test perplexity", xlim=(0, 1.6 * max(perplexities)))


def _attention(axes: Axes, each: dict, method: str) -> None:
    weights = np.array(each["attention"])
    axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(weights.shape[1]), [*each["source"], "<eos>"], rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(weights)), [*each["output"], "<eos>"][: len(weights)], fontsize=8)
    axes.set_title(f"attention of {method}", fontsize=10)


def _stem(method: str) -> str:
    return method.replace(":", "-")


if __name__ == "__main__":
    command_line.as_program(main)
