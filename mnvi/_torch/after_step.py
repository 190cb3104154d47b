"""A call after every step of any torch optimiser that has a parameter: pruned means go back to zero there, for example.

Torch calls one function after the steps of all optimisers. It looks for parameters that something follows, so that a
user registers nothing and cannot forget to.
"""

from typing import Any, Protocol
from weakref import ref

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary


class Follower(Protocol):
    """What follows the steps of a parameter."""

    def stepped(self, parameter: Tensor, optimiser: Optimizer) -> None:
        """``optimiser`` has just stepped ``parameter``."""


_followers: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameters to a weak reference to their follower
_handle: Any = None  # of torch's hook


def follow(parameter: Tensor, follower: Follower) -> None:
    """Have ``follower.stepped(parameter, optimiser)`` called after every step of an optimiser that has it."""
    global _handle
    if _handle is None:  # once a process, when there is something to follow
        _handle = register_optimizer_step_post_hook(_after_step)
    _followers[parameter] = ref(follower)


def unfollow(parameter: Tensor) -> None:
    """Undo :func:`follow`, if there was one."""
    _followers.pop(parameter, None)


def _after_step(optimiser: Optimizer, args: Any, kwargs: Any) -> None:
    if not _followers:
        return
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            reference = _followers.get(parameter)
            follower = None if reference is None else reference()
            if follower is not None and parameter.grad is not None:
                follower.stepped(parameter, optimiser)
