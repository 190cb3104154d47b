"""With which kind of likelihood a model was trained: where that has units or scales that a short name does not have."""

from torch import nn

ATTRIBUTE = "_trained_likelihood"  # a plain one, the name of a class: copies and pickles of the model have it


def remember_likelihood(model: nn.Module, likelihood: nn.Module) -> None:
    """Note on ``model`` the kind of likelihood that it was trained with."""
    setattr(model, ATTRIBUTE, type(likelihood).__name__)


def trained_likelihood(model: nn.Module) -> str | None:
    """The name that was noted, if any."""
    return getattr(model, ATTRIBUTE, None)
