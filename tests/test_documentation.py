"""The documents against the code: public names and their signatures, modules, paths, the version."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
from importlib import metadata
from pathlib import Path

import pytest

import mnvi
from tests.cases import cases

ROOT = Path(mnvi.__file__).parents[1]
DOCUMENTS = {name: ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/api.md")}
MODULES = {"mnvi": mnvi} | {
    each.name: importlib.import_module(each.name) for each in pkgutil.walk_packages(mnvi.__path__, "mnvi.")
}
PUBLIC = {name: module for name, module in MODULES.items() if "._" not in name}
PACKAGES = {name: module for name, module in PUBLIC.items() if hasattr(module, "__path__")}
NAMES = {
    f"{package}.{name}": getattr(module, name)
    for package, module in PACKAGES.items()
    for name in getattr(module, "__all__", ())
}


# docs/api.md ----------------------------------------------------------------------------------------------------------


def sections(document):
    """The text below each heading of a document."""
    pieces = re.split(r"^##+ (.+)\n", document, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def entries(section):
    """What a section lists in front of the colon of each item: names, with a signature where one is given."""
    items = re.findall(r"^- ((?:`[^`]+`(?:, |,\n  )?)+):", section, re.MULTILINE)
    return [entry for item in items for entry in re.findall(r"`([^`]+)`", item)]


def parameters(entry):
    """Name → (source of its default, keyword-only?) of an entry like ``f(a, *, b=1, …)``."""
    inside = re.sub("…(, )?", "", entry.partition("(")[2][:-1]).rstrip(", ")
    arguments = ast.parse(f"def f({inside}): pass").body[0].args
    required = [None] * (len(arguments.args) - len(arguments.defaults))
    plain = zip(arguments.args, [*required, *arguments.defaults], strict=True)
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    listed = {each.arg: (default, False) for each, default in plain}
    return listed | {each.arg: (default, True) for each, default in named}


def default_of(value, parameter):
    """A parameter's default, made anew where a dataclass makes it."""
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    factories = {each.name: each.default_factory for each in fields}
    factory = factories.get(parameter.name, dataclasses.MISSING)
    return parameter.default if factory is dataclasses.MISSING else factory()


def is_right(value, parameter, source, keyword_only):
    """Whether a parameter is listed with its default and its kind."""
    scope = vars(mnvi.covariance) | vars(mnvi.sparsity)
    default = parameter.empty if source is None else eval(ast.unparse(source), scope)
    return default == default_of(value, parameter) and keyword_only == (parameter.kind is parameter.KEYWORD_ONLY)


def differences(entry, value):
    """The parameters in which an entry is not the signature of what it names."""
    every = inspect.signature(value).parameters.values()
    real = {each.name: each for each in every if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    listed = parameters(entry)
    missing = [] if "…" in entry else [name for name in real if name not in listed]
    wrong = [name for name, row in listed.items() if name not in real or not is_right(value, real[name], *row)]
    return missing + wrong


API = sections(DOCUMENTS["docs/api.md"].read_text())
SIGNATURES = {
    f"{package}.{entry}": (entry, f"{package}.{entry.partition('(')[0]}")
    for package, section in API.items()
    for entry in entries(section)
    if "(" in entry
}


@cases("package", {name: name for name in PACKAGES})
def test_the_list_of_public_names_is_complete(package):
    assert hasattr(PACKAGES[package], "__all__")
    listed = [entry.partition("(")[0] for entry in entries(API[package])]
    assert sorted(listed) == sorted(PACKAGES[package].__all__)


@cases("row", SIGNATURES)
def test_signatures_are_those_of_the_code(row):
    entry, name = row
    assert differences(entry, NAMES[name]) == []


def test_the_public_modules_of_linalg_are_listed():
    listed = entries(API["Modules of mnvi.linalg"])
    assert sorted(listed) == sorted(name for name in PUBLIC if name.startswith("mnvi.linalg."))


def example(a, b=1, *others, c=None, **options):
    """What the entries below are entries of."""


@pytest.mark.parametrize("entry", ["f(a, b=1, *, c=None)", "f(a, …, *, c=None)", "f(…, b=1)", "f(a, …)", "f(…)"])
def test_a_signature_is_recognised(entry):
    assert not differences(entry, example)


@pytest.mark.parametrize(
    "entry", ["f(a)", "f(a, b=2, *, c=None)", "f(a, b=1, c=None)", "f(a, b=1, *, d=None)", "f(b=2, …)", "f(a, b, …)"]
)
def test_a_signature_that_differs_is_found(entry):
    assert differences(entry, example)


# Names and modules ----------------------------------------------------------------------------------------------------


@cases("name", {name: name for name in NAMES})
def test_every_public_name_has_a_docstring(name):
    value = NAMES[name]
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
        assert (value.__doc__ or "").strip()
    else:
        assert name.endswith(".Point") or name.rpartition(".")[2].isupper()  # a type alias or a table, which have none


def expanded(path):
    """``a/{b,c}.py`` as ``a/b.py`` and ``a/c.py``."""
    choices = [piece.split(",") for piece in re.split(r"[{}]", path)]
    fixed = [[",".join(piece)] if k % 2 == 0 else piece for k, piece in enumerate(choices)]
    return ["".join(each) for each in itertools.product(*fixed)]


def paths(document):
    """The paths between backticks of a document that lead into this repository."""
    found = re.findall(r"`((?:mnvi|tests|examples|benchmarks|docs|figures)/[^\s`]*)`", document)
    return [path for each in found for path in expanded(each)]


@cases("path", DOCUMENTS)
def test_paths_and_links_of_documents_exist(path):
    document = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document) if "://" not in link]
    assert [each for each in paths(document) if not (ROOT / each).exists()] == []
    assert [each for each in links if not (path.parent / each).exists()] == []


@cases("path", DOCUMENTS)
def test_names_in_documents_resolve(path):
    for name in set(re.findall(r"\bmnvi(?:\.[A-Za-z_]\w*)+", path.read_text())):
        package, _, last = name.rpartition(".")
        assert name in MODULES or hasattr(pkgutil.resolve_name(package), last), name


def test_every_public_module_is_where_a_reader_finds_it():
    written = paths(DOCUMENTS["docs/architecture.md"].read_text())
    exported = {getattr(value, "__module__", None) for value in NAMES.values()}
    modules = {name: str(Path(module.__file__).relative_to(ROOT)) for name, module in PUBLIC.items()}
    assert [
        name
        for name, path in modules.items()
        if name not in PACKAGES and name not in exported and path not in written and Path(path).name != "base.py"
    ] == []


# The version ----------------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_metadata():
    assert mnvi.__version__ == metadata.version("mnvi")


def test_the_changelog_has_the_version_or_what_is_not_released():
    [version] = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest, last, *_ = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if newest == "Unreleased":
        assert "dev" in version
        assert numbers(version) > numbers(last)
    else:
        assert version == newest


def numbers(version):
    return [int(each) for each in re.findall(r"\d+", version)[:3]]


def test_nothing_repeats_the_version():
    [version] = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    sources = [*(ROOT / "mnvi").rglob("*.py"), *DOCUMENTS.values()]
    assert [str(path) for path in sources if version in path.read_text()] == []
