"""Implicit layers: the output is defined by an equation in the layer's function, which is evaluated
repeatedly. `ode`: the state of an ODE at a later time; `equilibrium`: a fixed point.
"""

from .equilibrium import Equilibrium, Solver
from .layer import ConvergenceError, ImplicitCounts, ImplicitLayer, implicit_counts
from .ode import ODEBlock

__all__ = [
    "ConvergenceError",
    "Equilibrium",
    "ImplicitCounts",
    "ImplicitLayer",
    "ODEBlock",
    "Solver",
    "implicit_counts",
]
