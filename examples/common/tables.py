"""Tables of numbers with a column to predict, from files as people have them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

LEAST = 50  # rows, of which a fifth is a test and some of the others set the noise


def read(path: str | None, target: str | None) -> pd.DataFrame:
    """A table whose last column is the target: ``target``, or what is the last one in the file.

    Args:
        path: of text with a line of names first, separated by commas, semicolons or tabs; or an ``.npz`` with ``x``
            (n, d) and ``y`` (n,). ``None``: concrete of ``$MNVI_DATA/uci``, or where that is
            missing scikit-learn's diabetes patients.

    Raises:
        ValueError: it is no such file, has no such column, or a column or row is not of finite numbers; names it.
        OSError: there is no file.
    """
    table = _loaded(path)
    names = [str(name) for name in table.columns]
    if target is not None and target not in names:
        raise ValueError(f"the target must be a column, one of {', '.join(names)}; got {target}")
    table.columns = names
    last = names[-1] if target is None else target
    return checked(table.reindex(columns=[name for name in names if name != last] + [last]))


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table itself; ValueError where nothing can be learnt from it."""
    kinds = pd.api.types
    if text := [
        name for name in table if not kinds.is_numeric_dtype(table[name]) or kinds.is_complex_dtype(table[name])
    ]:
        raise ValueError(f"all columns must hold numbers; these do not: {', '.join(map(str, text))}")
    infinite = ~np.isfinite(table.to_numpy(float))
    if bad := [str(row) for row in np.flatnonzero(infinite.any(1))]:
        columns = ", ".join(np.array(table.columns)[infinite.any(0)])
        which = ", ".join(bad[:10]) + ", …" * (len(bad) > 10)
        more = "counted from 0; fill them in or drop them"
        raise ValueError(f"{len(bad)} of the rows lack a finite number, in {columns}: {which}, {more}")
    if table.shape[1] < 2 or len(table) < LEAST:
        raise ValueError(f"a table needs {LEAST} rows and 2 columns, got {len(table)} and {table.shape[1]}")
    if table.iloc[:, -1].nunique() == 1:
        raise ValueError(f"the target, {table.columns[-1]}, is constant: there is nothing to learn of it")
    return table


def _loaded(path: str | None) -> pd.DataFrame:
    concrete = Path(os.environ.get("MNVI_DATA", ""), "uci", "concrete.npz")
    if path is None and not concrete.exists():
        names = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "progression"]
        x, y = (np.asarray(part) for part in load_diabetes(return_X_y=True, scaled=False))
        return pd.DataFrame(np.column_stack([x, y]), columns=names)
    path = str(concrete) if path is None else path
    if Path(path).suffix == ".npz":
        with np.load(path) as stored:
            if missing := {"x", "y"} - set(stored):
                raise ValueError(f"{path} must hold x (n, d) and y (n,); {', '.join(sorted(missing))} missing")
            x, y = stored["x"], stored["y"]
        if x.ndim != 2 or y.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"{path} must hold x (n, d) and y (n,); got the shapes {x.shape} and {y.shape}")
        return pd.DataFrame(np.column_stack([x, y]), columns=[*map(str, range(x.shape[1])), "y"])
    with open(path) as text:
        first = text.readline()
    table = pd.read_csv(path, sep=max(",;\t", key=first.count))
    if all(_is_number(name) for name in table.columns):
        raise ValueError(f"the first line of {path} must have the names of the columns, not numbers")
    return table


def _is_number(name: object) -> bool:
    try:
        return float(str(name)) is not None
    except ValueError:
        return False
