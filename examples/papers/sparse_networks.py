"""Sparse networks of Rudnev & Kropotov (2019) beside magnitude pruning: every run of the README, one after another.

    python -m examples.papers.sparse_networks --list                        # their commands
    python -m examples.papers.sparse_networks --only mnist --threads 1      # those of MNIST
    python -m examples.papers.sparse_networks --device cuda --times 3       # all, three times as long, on a GPU

Each is a call of sparsify.py; the options are in sparse_runs.py. A killed one goes on where it was, a finished one is
not done again, and two processes may share the list, each with an --only of its own. At the end a table of what is
finished; `python -m examples.figures --folder runs/sparse` draws the figures.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from examples import sparsify
from examples.common import checkpoints
from examples.common.command_line import as_program, check, option, parse
from examples.papers.sparse_runs import RUNS, Run


@dataclass(frozen=True)
class Settings:
    only: str = option("", "a regular expression that the names of the runs contain")
    seeds: int = option(1, "runs of each kind, with seeds from 0", 1)
    times: float = option(1.0, "times the epochs of every run", 0.001)
    device: str = option("cpu", "where to train, such as cuda")
    threads: int = option(1, "CPU threads", 1)
    out: str = option("runs/sparse", "folder for the folders of the runs")
    list: bool = option(False, "only print the commands")

    def __post_init__(self) -> None:
        check(self, {})
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f"--only {self.only!r} is no regular expression: {error}") from None
        if not chosen(self):
            raise ValueError(f"no run is called like {self.only!r}; there are {', '.join(RUNS)}")


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Do the runs that are chosen and not done; returns the results of all of them that are done, by name."""
    settings = parse(Settings, argv, str(__doc__).splitlines()[0])
    for name, run in chosen(settings).items():
        for seed in range(settings.seeds):
            _do(name, run, seed, settings)
    paths = sorted(Path(settings.out).glob("*/result.json"))
    found = {path.parent.name: result for path in paths if "sparsity" in (result := json.loads(path.read_text()))}
    if found and not settings.list:
        print("\n" + table(found))
    return found


def chosen(settings: Settings) -> dict[str, Run]:
    """The runs that are meant."""
    return {name: run for name, run in RUNS.items() if re.search(settings.only, name)}


def _do(name: str, run: Run, seed: int, settings: Settings) -> None:
    folder = Path(settings.out, _named(name, seed, settings))
    words = [*shlex.split(run.options), *(["--left", _left(run, seed, settings)] if run.left_of else [])]
    words += ["--seed", str(seed), *_longer(run, settings.times)]
    words += ["--threads", str(settings.threads), "--device", settings.device]
    words += ["--plain", str(Path(settings.out, "plain")), "--out", str(folder)]
    print("python examples/sparsify.py", shlex.join(words), flush=True)
    if not settings.list and not (folder / "result.json").exists():
        if run.trained_as:
            _take(Path(settings.out, _named(run.trained_as, seed, settings)), folder)
        sparsify.main(words)


def _named(name: str, seed: int, settings: Settings) -> str:
    """The run's name with this seed and length."""
    longer = "" if settings.times == 1 else f"-x{settings.times:g}"
    return name + longer + (f"-seed{seed}" if seed else "")


def _take(source: Path, folder: Path) -> None:
    """The checkpoint of a finished run, for another to go on from."""
    if not (source / "result.json").exists():
        raise ValueError(f"{folder.name} prunes the network of {source.name}, which has to be run before")
    checkpoints.write(
        checkpoints.prepare(folder) / "checkpoint.pt", lambda path: shutil.copy(source / "checkpoint.pt", path)
    )


def _longer(run: Run, times: float) -> list[str]:
    """Options that multiply the numbers of epochs."""
    if times == 1:
        return []
    own = parse(sparsify.Settings, [*shlex.split(run.options), *(["--left", "1"] if run.left_of else [])], "")
    least = {"plain_epochs": 1, "epochs": 2 if run.left_of else 1, "finetune": 0}
    counts = {name: max(low, round(times * getattr(own, name))) for name, low in least.items()}
    return [word for name, count in counts.items() for word in (f"--{name.replace('_', '-')}", str(count))]


def _left(run: Run, seed: int, settings: Settings) -> str:
    """How many weights the run that ``run`` is compared with has left."""
    path = Path(settings.out, _named(run.left_of, seed, settings), "result.json")
    if path.exists():
        sparsity = json.loads(path.read_text())["sparsity"]
        units = "--groups rows" in run.options  # of a smaller network all weights count
        return str(sum(each["compact"][2] for each in sparsity["layers"]) if units else sparsity["total"]["left"])
    if settings.list:
        return "LEFT"
    raise ValueError(f"magnitude pruning leaves as many weights as {run.left_of}, which has to be run before")


def table(results: dict[str, dict]) -> str:
    """Of every run the test quality of its last network and of its draws, −ELBO, and its size, in Markdown."""
    rows = ["| run | accuracy % | NLL | ECE % | sampled | −ELBO | weights left | fewer | compact | ms, 128 / 1 |"]
    rows.append("|" + "---|" * 10)
    for name, result in results.items():
        last, drawn = list(result["metrics"].values())[-1], result["metrics"].get("sampled")
        sampled = f"{drawn['accuracy']:.2f}, {drawn['nll']:.3f}, {drawn['ece']:.2f}" if drawn else ""
        bound = result["history"][-1].get("neg_elbo")
        count, size = result["sparsity"]["total"], result["parameters"]
        cells = [name, f"{last['accuracy']:.2f}", f"{last['nll']:.3f}", f"{last['ece']:.2f}", sampled]
        cells += ["" if bound is None else f"{bound:.3f}", f"{count['left']:,}"]
        cells += [f"{count['weights'] / max(1, count['left']):.1f}×", f"{size['compacted']:,} of {size['plain']:,}"]
        cells.append(" / ".join(f"{times['compacted']:.2f}" for times in result["latency_ms"].values()))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    as_program(main)
