"""A Global layer by fused operators.

decision: which way a call takes, and why; inference, training: the fused ways; eligibility: whether the layer
is the plain module that the operators compute; folding: norms into convolutions; arguments: a layer's
settings as the operators take them.
"""

from .decision import Decision, Way, decide
from .inference import FusedGlobalLayer, why_not_frozen

__all__ = ["Decision", "FusedGlobalLayer", "Way", "decide", "why_not_frozen"]
