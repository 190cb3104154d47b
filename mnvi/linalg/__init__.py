"""Matrix functions and their hand-written derivatives, one a file; nothing here knows of manifolds or posteriors."""

from .exponential import exponential
from .logarithm import logarithm
from .polar import polar_factor
from .solve import inverse, slogdet, solve

__all__ = ["exponential", "inverse", "logarithm", "polar_factor", "slogdet", "solve"]
