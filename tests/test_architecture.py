"""What the sources may use: matrix functions come from ``mnvi.linalg``, which knows of nothing above it."""

import ast
from pathlib import Path

import pytest

import mnvi
from tests.cases import cases

ROOT = Path(mnvi.__file__).parent
FLOOR = ROOT / "linalg"
SOURCES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
ABOVE = {name: path for name, path in SOURCES.items() if FLOOR not in path.parents}

OF_LINALG = ("solve", "inv", "det", "slogdet", "lu", "ldl", "matrix_exp", "matrix_power", "pinv", "lstsq", "tensor")
OF_TORCH = {"inverse", "det", "logdet", "slogdet", "lu", "lu_solve", "lu_unpack", "cholesky_solve", "cholesky_inverse"}
OF_TORCH |= {"matrix_exp", "matrix_power", "pinverse", "triangular_solve", "lstsq"}
METHODS = OF_TORCH - {"inverse"}  # of tensors; what else has such a name is ours, and other objects have an inverse


def dotted(node):
    """``a.b.c`` of an expression, with ``?`` for anything but a name in front."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def is_forbidden(name):
    """Whether a dotted name is a matrix function of torch."""
    *owner, last = name.split(".")
    if owner[-1:] == ["linalg"]:
        return last.startswith(OF_LINALG)
    if owner[-1:] == ["torch"]:
        return last in OF_TORCH
    return bool(owner) and last in METHODS


def matrix_functions(source):
    """The matrix functions of torch that a source uses or imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.append(dotted(node))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "inverse":
            found += ["torch.inverse"] * (not node.args and not node.keywords)  # Tensor.inverse() takes nothing
    return [each for each in found if is_forbidden(each)]


def packages(source, depth):
    """The packages beside or above a file of ``mnvi.linalg`` that it imports; ``depth`` is that of the file below."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level > depth and not (node.module or "").startswith("_torch"):
            found.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mnvi":
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] == "mnvi"]
    return found


@cases("path", ABOVE)
def test_matrix_functions_come_from_the_floor(path):
    assert matrix_functions(path.read_text()) == []


@cases("path", {name: path for name, path in SOURCES.items() if name not in ABOVE})
def test_the_floor_knows_of_nothing_above_it(path):
    assert packages(path.read_text(), len(path.relative_to(FLOOR).parts)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.linalg.solve(a, b)",
        "from torch.linalg import inv",
        "from torch import linalg\nlinalg.solve_triangular(a, b, upper=True)",
        "x = torch.inverse(a)",
        "a.inverse()",
        "(a @ b).logdet()",
        "torch.linalg.lu_factor_ex(a)",
        "f = torch.matrix_exp",
    ],
)
def test_what_is_forbidden_is_found(source):
    assert matrix_functions(source)


@pytest.mark.parametrize(
    "source", ["x = torch.linalg.qr(a)", "y.inverse(2)", "from .linalg.solve import inverse, solve"]
)
def test_what_is_not_is_left(source):
    assert not matrix_functions(source)


@pytest.mark.parametrize("source", ["from ..manifolds import SPD", "import mnvi._checks", "from mnvi import priors"])
def test_an_import_from_above_is_found(source):
    assert packages(source, 1)
    assert not packages("from .solve import solve\nimport torch", 1)
