"""What the benchmarks share: contenders that take turns, ratios within one run, results as a table and as JSON."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Results = dict[str, dict[str, float]]


def parser(description: str) -> argparse.ArgumentParser:
    """The command line of a benchmark, with what all of them take."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    found = argparse.ArgumentParser(
        f"python -m {spec.name}" if spec else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    found.add_argument("--json", help="also write the results here")
    return found


def prepare(threads: int) -> None:
    """Set the CPU threads and the seed, and allocate and free one large array.

    A training process has usually freed one (its data, say), which makes glibc's allocator keep freed memory instead of
    returning it to the system.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    del_me = torch.zeros(30 * 2**18)
    del del_me


def measure(steps: Mapping[str, Callable[[], object]], rounds: int, seconds: float = float("inf")) -> Results:
    """Milliseconds of each step, over so many rounds, or fewer (5 at least) where the time is up.

    All contenders take turns within each round, so that a disturbance of the machine hits all. A ratio is that of the
    medians, to the first contender; the spread is the smallest and the largest ratio within a round.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    started, done = time.perf_counter(), -2  # two rounds to warm up
    while done < rounds and (done < 5 or time.perf_counter() - started < seconds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if done >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
        done += 1
    base = next(iter(times.values()))
    return {name: _row(values, base) for name, values in times.items()}


def _row(values: list[float], base: list[float]) -> dict[str, float]:
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return {
        "median_ms": round(statistics.median(values), 3),
        "fastest_ms": round(min(values), 3),
        "ratio": round(statistics.median(values) / statistics.median(base), 3),
        "smallest_ratio": round(min(ratios), 3),
        "largest_ratio": round(max(ratios), 3),
        "rounds": len(values),
    }


def show(title: str, results: Results) -> None:
    """Print one table."""
    print(f"\n{title}\n{'':40s}{'median ms':>10s}{'fastest':>9s}{'ratio':>8s}{'spread':>16s}{'rounds':>8s}")
    for name, row in results.items():
        spread = f"{row['smallest_ratio']:.2f}-{row['largest_ratio']:.2f}"
        numbers = (
            f"{row['median_ms']:10.2f}{row['fastest_ms']:9.2f}{row['ratio']:8.3f}{spread:>16s}{row['rounds']:8.0f}"
        )
        print(f"{name:40s}{numbers}", flush=True)


def chosen(tables: Mapping[str, Callable[[], Any]], only: str) -> dict[str, Callable[[], Any]]:
    """The tables whose title holds ``only``; none is an error that lists them."""
    found = {title: make for title, make in tables.items() if only in title}
    if not found:
        raise SystemExit(f"no table's title holds {only!r}; there are: {'; '.join(tables)}")
    return found


def write_json(path: str | None, setting: Mapping[str, Any], packages: tuple[str, ...], results: Any) -> None:
    """Write results, their setting and the versions of those ``packages`` that are installed, whole or not at all."""
    if path is None:
        return
    versions = {"python": platform.python_version()}
    for name in ("torch", *packages):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    content = {"setting": {**setting, "cpu": platform.machine(), "versions": versions}, "results": results}
    temporary = Path(path + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
