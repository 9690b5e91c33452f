"""Measurements of networks: parameters, multiply-adds, depth, receptive field, latency, environment."""

from .counts import Counts, LayerCount, count
from .depth import depth
from .environment import environment, usable_cores
from .latency import Latency, latency
from .receptive_field import ReceptiveField, receptive_field

__all__ = [
    "Counts",
    "Latency",
    "LayerCount",
    "ReceptiveField",
    "count",
    "depth",
    "environment",
    "latency",
    "receptive_field",
    "usable_cores",
]
