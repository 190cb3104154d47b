"""What the attributes of modules are, in words: equal for equal values, in every process."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import unwrap
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .._models.trained_likelihoods import ATTRIBUTE
from ..parametrizations import Trivialization

PASSING = ("training", "use_nested_tensor", "activation_relu_or_gelu")  # that a use of the model sets
PASSING = {*vars(nn.Module()), *PASSING, ATTRIBUTE, "_compiled_call_impl"}
LONGEST = 60  # characters of a value that are shown, of longer ones a checksum
Held = dict[tuple[str, str], list[Any]]


def attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has beside parameters, buffers, modules and hooks, and beside the private state of its library."""
    own = {*_of_library(type(module)), *(("steps", "rebases") if isinstance(module, Trivialization) else ())}
    return {name: value for name, value in vars(module).items() if name not in PASSING and name not in own}


def held(model: nn.Module) -> Held:
    """The objects that attributes refer to, by the names of module and attribute."""
    return {
        (path, name): [value, *_contents(value)]
        for path, module in model.named_modules()
        for name, value in attributes(module).items()
    }


def set_since(before: Held, model: nn.Module) -> set[tuple[str, str]]:
    """The attributes that have other objects than then: what a use of the model sets says nothing of what it is."""
    now = held(model)
    return {key for key in {*before, *now} if list(map(id, before.get(key, ()))) != list(map(id, now.get(key, ())))}


def described_attributes(model: nn.Module, passing: set[tuple[str, str]]) -> dict[str, str]:
    """Every attribute in words, but for those of ``passing``; tensors and modules that the model has by name."""
    named = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    words = _Words({id(part): f"the model's {name or 'own'}" for name, part in named})
    return {
        f"attribute {path}{'.' if path else ''}{name}": words.of(value)
        for path, module in model.named_modules()
        for name, value in attributes(module).items()
        if (path, name) not in passing
    }


@cache
def _of_library(kind: type) -> frozenset[str]:
    """The private names that the code of torch's and mnvi's classes among the bases of ``kind`` uses: their own."""
    bases = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in ("torch", "mnvi")]
    functions = [unwrap(each) for base in bases for each in vars(base).values() if isinstance(each, FunctionType)]
    return frozenset(name for each in functions for name in each.__code__.co_names if name[0] == "_")


def _contents(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


class _Words:
    """Values in words; ``known`` has those of objects, by their id, that are to be called by a name."""

    def __init__(self, known: dict[int, str]) -> None:
        self.known = known
        self.inside: list[int] = []  # the objects that are being described, which may hold themselves
        self.done: dict[int, tuple[Any, str]] = {}  # with the object, so that its id is not used again

    def of(self, value: Any) -> str:
        """``value`` in words."""
        if value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes)):
            return _short(type(value).__name__, repr(value))
        if id(value) in self.known:
            return self.known[id(value)]
        if id(value) in self.inside:
            return f"what is {len(self.inside) - self.inside.index(id(value))} around"
        if id(value) not in self.done:
            self.inside.append(id(value))
            self.done[id(value)] = value, self._new(value)
            self.inside.pop()
        return self.done[id(value)][1]

    def _new(self, value: Any) -> str:
        kind = type(value).__name__
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, torch.device):  # a model may be trained elsewhere
            return kind
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, ModuleType) or (isinstance(value, BuiltinFunctionType) and _is_free(value)):
            return value.__name__
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return self._all(kind, [value.__func__, value.__self__])
        if isinstance(value, CodeType):
            return self._all("code", [value.co_code, value.co_names, value.co_consts])
        if isinstance(value, (set, frozenset)):
            return _short(kind, f"{kind}({', '.join(sorted(map(self.of, value)))})")
        if isinstance(value, dict):
            return _short(kind, f"{kind}({', '.join(sorted(f'{self.of(k)}: {self.of(v)}' for k, v in value.items()))})")
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return self._all("", value)
        return self._object(value)

    def _function(self, function: FunctionType) -> str:
        """Its name, and a checksum of what it does and of what it holds."""
        cells = function.__closure__ or ()
        empty = [cell for cell in cells if cell == type(cell)()]
        parts = [function.__code__, function.__defaults__, function.__kwdefaults__]
        parts += [cell.cell_contents for cell in cells if cell not in empty]
        return f"{function.__name__} {_checksum(self._all('', parts)):08x}"

    def _object(self, value: Any) -> str:
        """What a pickle of it would hold; of what cannot be pickled, and of random states, the class."""
        kind = type(value).__name__
        if isinstance(value, torch.Generator):
            return kind
        if hasattr(value, "dtype") and hasattr(value, "tobytes") and not getattr(value.dtype, "hasobject", True):
            return f"{kind} of shape {tuple(value.shape)}, {value.dtype}, checksum {_checksum(value.tobytes()):08x}"
        try:
            made = value.__reduce_ex__(4)
        except Exception:  # whatever its class says to that
            return kind
        if isinstance(made, str):
            return made
        return self._all(kind, [list(each) if hasattr(each, "__next__") else each for each in made])

    def _all(self, kind: str, values: Sequence[Any]) -> str:
        return _short(kind, f"{kind}({', '.join(map(self.of, values))})")


def _is_free(function: BuiltinFunctionType) -> bool:
    """Whether it is no method of some object."""
    return function.__self__ is None or isinstance(function.__self__, (ModuleType, type))


def _tensor(tensor: Tensor) -> str:
    words = f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}"
    if tensor.is_meta:
        return words
    dense = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg()
    shown = f"{dense.item()}" if dense.numel() == 1 else f"checksum {_checksum(as_bytes(dense)):08x}"
    return f"{words}, {shown}"


def as_bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory, row by row."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _short(kind: str, words: str) -> str:
    return words if len(words) <= LONGEST else f"{kind} {_checksum(words):08x}"


def _checksum(words: str | bytes) -> int:
    return zlib.crc32(words.encode() if isinstance(words, str) else words)
