"""A report as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._score_quantiles import SHARES

if TYPE_CHECKING:
    from .report import LayerReport, Report

HEADER = ("layer", "weights", "left", "dropped %", "rows left", "columns left")
COMPACT = ("compact", "parameters")  # rows x columns that compact leaves, and all its parameters


def table(report: "Report") -> str:
    """The layers, what compaction leaves, and the quantiles of the scores."""
    possible = report.compact.parameters is not None
    total = ("", f"{report.compact.parameters:,}") if possible else ()
    rows = [(*_counts(layer), *(_compact(layer) if possible else ())) for layer in report.layers]
    lines = _aligned([(*HEADER, *(COMPACT if possible else ())), *rows, (*_counts(report.total), *total)])
    rule = "-+-".join("-" * len(cell) for cell in lines[0].split(" | "))
    text = [lines[0], rule, *lines[1:-1], rule, lines[-1], _compaction(report), *_scores(report)]
    return "\n".join(text + ([f"deterministic: {', '.join(report.deterministic)}"] if report.deterministic else []))


def _counts(layer: "LayerReport") -> tuple[str, ...]:
    left = f"{layer.rows_left:,}/{layer.rows:,}", f"{layer.columns_left:,}/{layer.columns:,}"
    return layer.name, f"{layer.weights:,}", f"{layer.left:,}", f"{layer.dropped:.2f}", *left


def _compact(layer: "LayerReport") -> tuple[str, str]:
    if layer.compact is None:
        return "-", "-"
    rows, columns, parameters = layer.compact
    return f"{rows:,}x{columns:,}", f"{parameters:,}"


def _compaction(report: "Report") -> str:
    sizes = report.compact
    if sizes.parameters is None or sizes.weights is None or sizes.zeros is None:
        return f"compact: not possible: {sizes.error}"
    others = sizes.parameters - sizes.weights
    zeros = f", {sizes.zeros:,} of them 0 (only whole units are cut)" if sizes.zeros else ""
    return (
        f"compact: {report.parameters:,} -> {sizes.parameters:,} parameters: "
        f"{sizes.weights:,} weights{zeros} and {others:,} others (biases)"
    )


def _scores(report: "Report") -> list[str]:
    if not report.scores:
        return []
    rows = [(groups, *(f"{value:.3g}" for value in values)) for groups, values in report.scores.items()]
    return _aligned([("|mean|/sd of what is left", *(f"{100 * share:g} %" for share in SHARES)), *rows])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
