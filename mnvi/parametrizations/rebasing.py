"""What happens to dynamic trivializations after a step of any torch optimiser.

Torch calls one function after every optimiser's step. It looks for parameters that are coordinates of a
trivialization, so that a user registers nothing and cannot forget to.
"""

from typing import Any, Protocol
from weakref import ref

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary


class Rebased(Protocol):
    """What follows the steps of its coordinates."""

    def stepped(self, coordinates: Tensor, optimiser: Optimizer) -> None: ...


_followers: WeakIdKeyDictionary = WeakIdKeyDictionary()  # coordinates to a weak reference to their trivialization
_handle: Any = None  # of torch's hook


def follow(coordinates: Tensor, follower: Rebased) -> None:
    """Have ``follower.stepped(coordinates, optimiser)`` called after every step of an optimiser that has them."""
    global _handle
    if _handle is None:  # once a process, when there is something to follow
        _handle = register_optimizer_step_post_hook(_after_step)
    _followers[coordinates] = ref(follower)


def _after_step(optimiser: Optimizer, args: Any, kwargs: Any) -> None:
    if not _followers:
        return
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            reference = _followers.get(parameter)
            follower = None if reference is None else reference()
            if follower is not None and parameter.grad is not None:
                follower.stepped(parameter, optimiser)
