"""Layers: the Global layer and its coefficient networks."""

from .blocks import NormAct, ResidualDepthwise
from .coefficients import NETWORKS, Coefficient
from .diagnostics import Evolution, Fields, Stability
from .global_layer import GlobalLayer
from .uniform import UniformGlobalLayer

__all__ = [
    "NETWORKS",
    "Coefficient",
    "Evolution",
    "Fields",
    "GlobalLayer",
    "NormAct",
    "ResidualDepthwise",
    "Stability",
    "UniformGlobalLayer",
]
