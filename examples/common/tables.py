"""Tables of numbers with a column to predict, from files as people have them."""

import csv
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

LARGEST = float(np.finfo(np.float32).max)
LEAST = 50  # rows, of which a fifth is a test and some of the others set the noise


def read(path: str | None, target: str | None) -> pd.DataFrame:
    """A table whose last column is the target: ``target``, or what is the last one in the file.

    Args:
        path: of text with a line of names first, separated by commas, semicolons or tabs; or an ``.npz`` with ``x``
            (n, d) and ``y`` (n,). ``None``: concrete of ``$MNVI_DATA/uci``, or where that is
            missing scikit-learn's diabetes patients.

    Raises:
        ValueError: it is no such file, has no such column, or a column or row is not of finite numbers, or of ones
            beyond single precision; names it and
            what to do.
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
    if table.shape[1] < 2 or len(table) < LEAST:
        advice = "; commas, semicolons or tabs separate columns" if table.shape[1] < 2 else ""
        raise ValueError(f"a table needs {LEAST} rows and 2 columns, got {len(table)} and {table.shape[1]}{advice}")
    kinds = pd.api.types
    if text := [
        name for name in table if not kinds.is_numeric_dtype(table[name]) or kinds.is_complex_dtype(table[name])
    ]:
        raise ValueError(
            f"all columns must hold numbers; these do not: {', '.join(map(str, text))}; {_advice(table[text[0]])}"
        )
    infinite = ~np.isfinite(table.to_numpy(float))
    if bad := [str(row) for row in np.flatnonzero(infinite.any(1))]:
        columns = ", ".join(np.array(table.columns)[infinite.any(0)])
        which = ", ".join(bad[:10]) + ", …" * (len(bad) > 10)
        more = "counted from 0; fill them in or drop them"
        raise ValueError(f"{len(bad)} of the rows lack a finite number, in {columns}: {which}, {more}")
    if bad := [str(name) for name in table if np.abs(table[name].to_numpy(float)).max() > LARGEST]:
        raise ValueError(f"numbers must be within ±{LARGEST:.1e}, as networks take them; divide {', '.join(bad)}")
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
    return _text(path)


def _text(path: str) -> pd.DataFrame:
    """The table in a text file whose first line has the names."""
    try:
        with open(path, encoding="utf-8-sig") as text:
            first = text.readline()
        separator = max(",;\t", key=first.count)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, sep=separator, index_col=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save a spreadsheet as CSV in UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty; it must have a line of names and rows of numbers") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"the rows of {path} must have as many columns as its first line ({error})") from error
    names = next(csv.reader([first], delimiter=separator))
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    values = [name for name, numbers in zip(names, numeric, strict=False) if numbers]
    if values and all(_is_number(name) for name in values):
        raise ValueError(f"the first line of {path} must have the names of the columns, not numbers; write it above")
    return table


def _advice(column: pd.Series) -> str:
    """What makes numbers of a column of text."""
    values = column.tolist()
    row = next((k for k, value in enumerate(values) if not _is_number(value)), 0)
    value = str(values[row])
    came = f"{column.name} has {value!r} in row {row}, counted from 0"
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        return f"{came}: write decimal points, not commas"
    return f"{came}: leave the column out, or make a column of 0 and 1 of each class, as pandas.get_dummies does"


def _is_number(name: object) -> bool:
    try:
        return float(str(name)) is not None
    except ValueError:
        return False
