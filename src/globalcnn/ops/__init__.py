"""The PDE solve as one operator; it knows tensors, nothing of networks."""

from .dispatch import BACKENDS, Backend, find_backend, solve, use_backend
from .pde import PDE, Boundary
from .schemes import AxisScheme, DuFortFrankel, GatedSweeps, Scheme, TridiagonalImplicit

__all__ = [
    "BACKENDS",
    "PDE",
    "AxisScheme",
    "Backend",
    "Boundary",
    "DuFortFrankel",
    "GatedSweeps",
    "Scheme",
    "TridiagonalImplicit",
    "find_backend",
    "solve",
    "use_backend",
]
