"""Pictures."""

from .curves import plot_curves

__all__ = ["plot_curves"]
