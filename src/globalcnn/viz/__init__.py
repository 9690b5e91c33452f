"""Pictures."""

from .comparison import plot_comparison
from .curves import plot_curves
from .maps import plot_evolution, plot_feature_maps, strongest_channels
from .recovery import plot_recovery

__all__ = [
    "plot_comparison",
    "plot_curves",
    "plot_evolution",
    "plot_feature_maps",
    "plot_recovery",
    "strongest_channels",
]
