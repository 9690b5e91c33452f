"""The fastest equivalent of a network for inference on this machine, found by measuring."""

from .form import Form, OptimizedModel
from .report import OptimizationReport, Row
from .search import optimize_for_inference

__all__ = ["Form", "OptimizationReport", "OptimizedModel", "Row", "optimize_for_inference"]
