"""The imports of the sources: floors, private modules, and matrix functions, which come from ``mnvi.linalg``.

The floors are those of docs/architecture.md, from the roof down.
"""

import ast
import re
from pathlib import Path

import pytest

import mnvi
from tests.cases import cases

ROOT = Path(mnvi.__file__).parent
DOCUMENT = (ROOT.parent / "docs" / "architecture.md").read_text()
SOURCES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
ABOVE_LINALG = {name: path for name, path in SOURCES.items() if ROOT / "linalg" not in path.parents}


# Floors and private modules -------------------------------------------------------------------------------------------


def floors(document):
    """The floor of each room, 0 the lowest, from the fenced block ``floors`` of a document."""
    [block] = re.findall(r"^```floors\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    return {room: level for level, line in enumerate(reversed(block.splitlines())) for room in line.split()}


def parts(path):
    """``["mnvi", "linalg", "solve"]`` of a file; the second is its room."""
    return list(path.relative_to(ROOT.parent).with_suffix("").parts)


def imports(source, module):
    """What a file of the name ``module`` imports from mnvi, wherever in it, as lists of names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name.split(".") for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*(module[: -node.level] if node.level else []), *(node.module or "").split(".")]
            found += [[*filter(None, base), each.name] for each in node.names]
    return [name for name in found if name[0] == "mnvi"]


def climbs(name, module, levels):
    """Whether an import leads to another room that is not on a lower floor; the package itself is the roof."""
    target, own = (*name, "")[1], module[1]
    return target != own and levels.get(target, ROOF) >= levels.get(own, ROOF)


def intrudes(name, module):
    """Whether an import passes an underscore from elsewhere than its package, what is below, and the one above."""
    package = module[:-1]
    private = [k for k, part in enumerate(name) if part.startswith("_") and not part.startswith("__")]
    return any(package[:k] != name[:k] and package != name[: k - 1] for k in private)


ROOF = 1000
LEVELS = floors(DOCUMENT)


def test_every_room_is_in_the_drawing():
    assert {parts(path)[1] for path in SOURCES.values()} == {*LEVELS, "__init__"}


@cases("path", SOURCES)
def test_imports_lead_to_lower_floors(path):
    module = parts(path)
    assert [name for name in imports(path.read_text(), module) if climbs(name, module, LEVELS)] == []


@cases("path", SOURCES)
def test_private_modules_stay_in_their_package(path):
    module = parts(path)
    assert [name for name in imports(path.read_text(), module) if intrudes(name, module)] == []


UP = {  # what a file imports from a room that is not below it
    "a higher floor": ("linalg/solve.py", "from ..manifolds import SPD"),
    "the same floor": ("posteriors/base.py", "from ..parametrizations.base import Parametrization"),
    "inside a function": ("module.py", "def f():\n    from .convert import to_bayesian"),
    "by its full name": ("priors/base.py", "import mnvi.layers.base"),
    "of the package": ("priors/base.py", "from mnvi import layers"),
    "the package itself": ("priors/base.py", "import mnvi"),
    "a name of the package": ("convert.py", "from . import kl"),
    "a room nobody knows": ("optim/base.py", "from ..attic import chest"),
}
PRIVATE = {  # what a file imports past an underscore
    "of another room": ("optim/base.py", "from ..manifolds._matrix_group import MatrixGroup"),
    "as a name": ("optim/base.py", "from ..manifolds import _matrix_group"),
    "by its full name": ("optim/base.py", "import mnvi.manifolds._matrix_group"),
    "two floors above": ("predictive.py", "from .manifolds.retractions._series import step"),
    "a function": ("layers/base.py", "from ..posteriors.base import _initial"),
}
FINE = {
    "a lower floor": ("module.py", "from .layers import bayesian_layers"),
    "its own room": ("layers/linear.py", "from . import _pruning\nfrom .base import BayesianLayer"),
    "below its own room": ("manifolds/retractions/qr.py", "from .._matrix_group import MatrixGroup"),
    "one above": ("convert.py", "from .layers._pruning import mask"),
    "of the whole house": ("linalg/solve.py", "from .._torch.tracing import is_traced\nfrom .. import _checks"),
}


@cases("row", UP)
def test_an_import_that_climbs_is_found(row):
    module = parts(ROOT / row[0])
    assert any(climbs(name, module, LEVELS) for name in imports(row[1], module))


@cases("row", PRIVATE)
def test_an_import_that_intrudes_is_found(row):
    module = parts(ROOT / row[0])
    assert any(intrudes(name, module) for name in imports(row[1], module))


@cases("row", FINE)
def test_an_import_from_below_is_left(row):
    module = parts(ROOT / row[0])
    names = imports(row[1], module)
    assert names
    assert not any(climbs(name, module, LEVELS) or intrudes(name, module) for name in names)


# Matrix functions -----------------------------------------------------------------------------------------------------

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


@cases("path", ABOVE_LINALG)
def test_matrix_functions_come_from_linalg(path):
    assert matrix_functions(path.read_text()) == []


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
