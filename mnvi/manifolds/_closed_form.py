"""Methods that only those manifolds have of which a closed form is known."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


class NoClosedForm(AttributeError):
    """A manifold has no such method, as no closed form of it is known."""


def closed_form(instead: str) -> Callable[[Method], Method]:
    """Declare a method that subclasses may define; where one has not, it is missing, and the error says ``instead``."""
    return lambda method: cast(Method, _Declared(method, instead))


class _Declared:
    """A method that is found on the class that declares it, for its documentation, and nowhere else."""

    def __init__(self, method: Callable[..., Any], instead: str) -> None:
        self.method, self.instead = method, instead
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, manifold: Any, owner: type) -> Callable[..., Any]:
        if manifold is None and owner is self.owner:
            return self.method
        who = owner.__name__ if manifold is None else manifold
        raise NoClosedForm(f"{who} has no {self.name} in closed form; {self.instead}")
