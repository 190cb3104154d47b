"""From a posterior to a smaller network: score weights, prune them, see what is left, and cut it out."""

from .compact import compact
from .find_thresholds import find_thresholds
from .hold import Hold, hold
from .prune import prune
from .report import LayerReport, Report, report
from .scores import prior_scale, signal_to_noise
from .select import Select
from .thresholds import LayerThreshold, Thresholds

__all__ = [
    "Hold",
    "LayerReport",
    "LayerThreshold",
    "Report",
    "Select",
    "Thresholds",
    "compact",
    "find_thresholds",
    "hold",
    "prior_scale",
    "prune",
    "report",
    "signal_to_noise",
]
