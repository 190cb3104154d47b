"""Examples and benchmarks import what is public, and nothing else of mnvi."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SELF_CONTAINED = {"uncertainty", "manifold_optimization", "orthogonal_rnn", "natural_gradient"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, or read as an attribute of the name ``mnvi``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"mnvi(\.\w+)+", name := ast.unparse(node)):
            yield name


def is_public(name: str) -> bool:
    """Whether each part is a public module or, of a package or module that lists its names, one of these."""
    holder, *parts = name.split(".")
    found = importlib.import_module(holder)
    for part in parts:
        if part.startswith("_") and part != "__version__":
            return False
        holder = f"{holder}.{part}"
        listed = getattr(found, "__all__", None)
        if isinstance(found, type(ast)) and listed is not None and part not in (*listed, "__version__"):
            try:
                found = importlib.import_module(holder)
            except ModuleNotFoundError:
                return False
        else:
            found = getattr(found, part)
    return True


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_only_public_names_are_used(path):
    names = {name for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == "mnvi"}
    assert {name for name in names if not is_public(name)} == set()


@pytest.mark.parametrize(
    "line",
    [
        "from mnvi.linalg._traced_exponential import x",
        "import mnvi._checks",
        "from mnvi.optim import base64",
        "import mnvi; mnvi.optim._matching",
        "from mnvi import ELB0",
    ],
)
def test_a_private_or_unlisted_name_is_found(line):
    names = [name for name in imported(ast.parse(line)) if name != "mnvi"]
    assert not all(map(is_public, names))


def test_a_public_name_is_not():
    lines = "from mnvi.manifolds import Stiefel\nimport mnvi\nmnvi.posteriors.MatrixNormal(), mnvi.__version__"
    assert all(map(is_public, imported(ast.parse(lines))))


def test_the_scripts_at_the_top_need_nothing_else_of_the_examples():
    for name in SELF_CONTAINED:
        names = set(imported(ast.parse((ROOT / "examples" / f"{name}.py").read_text())))
        assert not {each for each in names if each.startswith(("examples", "."))}
