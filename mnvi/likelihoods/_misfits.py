"""Targets that do not fit: in which rows they are, and what may have been meant.

Numbers are read where the entries are wrong, never where they are right.
"""

import torch
from torch import Tensor

SHOWN = 3  # rows and values that are named before the others are counted


def all_of(condition: Tensor) -> bool:
    """Whether ``condition`` holds everywhere; True where values cannot be read: traced, or inside torch.func."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(condition.all())
    except RuntimeError:
        return True


def rows(bad: Tensor) -> str:
    """``"row 3"`` or ``"rows 3, 5, 8 and 4 more"``: the examples with a True among the entries of ``bad``, (N, …)."""
    return numbered("row", bad.flatten(1).any(1) if bad.dim() > 1 else bad)


def numbered(noun: str, chosen: Tensor) -> str:
    """The same of anything that is counted along the one dimension of ``chosen``."""
    found = chosen.nonzero().flatten().tolist()
    shown, more = ", ".join(map(str, found[:SHOWN])), len(found) - SHOWN
    return f"{noun}{'s' * (len(found) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")


def entries(target: Tensor, bad: Tensor) -> str:
    """The values and rows of ``target`` where ``bad``: ``"10 at row 3"``, ``"-1, 10 at rows 3, 5, 8 and 4 more"``."""
    values = [*dict.fromkeys(map(str, target[bad].unique().tolist()))]  # NaNs are unequal, but one word
    shown = values[:SHOWN] + ["…"] * (len(values) > SHOWN)
    return f"{', '.join(shown)} at {rows(bad)}"


def refuse_entries(target: Tensor, good: Tensor, expected: str) -> None:
    """Raise ValueError, with the entries, unless ``good``, of the shape of ``target``, holds everywhere."""
    if not all_of(good):
        raise ValueError(f"target must {expected}, got {entries(target, ~good)}")


def shape_advice(target: Tensor, expected: torch.Size) -> str:
    """How a target that has a last dimension of 1 too many, or lacks it, gets the ``expected`` shape."""
    if target.shape == (*expected, 1):
        return "; target.squeeze(-1) fits"
    return "; target.unsqueeze(-1) fits" if (*target.shape, 1) == tuple(expected) else ""


def label_advice(labels: Tensor, classes: int) -> str:
    """What may have been meant by ``labels``, observed ones of which at least one is not below ``classes``."""
    least, most = int(labels.min()), int(labels.max())
    if least == 1 and most == classes:
        return "; if the labels begin at 1, subtract 1"
    if least < 0 or most == 255:
        return "; Categorical(ignore_index=…) leaves entries with one label out"
    return ""
