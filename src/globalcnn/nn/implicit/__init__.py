"""Implicit layers: their output is defined by an equation in their function, and found by evaluating it again
and again. `ode`: the state of an ODE at a later time; `equilibrium`: a fixed point.
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
