"""From a posterior to a smaller network: score weights, prune them, see what is left, and cut it out."""

from .compact import compact
from .prune import prune
from .report import LayerReport, Report, report
from .scores import prior_scale, signal_to_noise
from .select import Select

__all__ = ["LayerReport", "Report", "Select", "compact", "prior_scale", "prune", "report", "signal_to_noise"]
