"""Layers: the Global layer and its coefficient networks."""

from .coefficients import NETWORKS, Coefficient
from .global_layer import Evolution, Fields, GlobalLayer, Stability

__all__ = ["NETWORKS", "Coefficient", "Evolution", "Fields", "GlobalLayer", "Stability"]
