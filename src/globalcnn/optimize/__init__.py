"""The fastest equivalent of a network for inference on this machine, found by measuring."""

from .model import OptimizedModel
from .report import OptimizationReport, Row
from .search import optimize_for_inference
from .variant import Variant

__all__ = ["OptimizationReport", "OptimizedModel", "Row", "Variant", "optimize_for_inference"]
