"""A Global layer run by fused operators.

decision: how a call runs, and why; inference, training: the fused execution; eligibility: whether the layer
is an unmodified `GlobalLayer`, which the operators compute; folding: norms into convolutions; arguments: a
layer's settings in the operators' schema.
"""

from .decision import Decision, Way, decide
from .inference import FusedGlobalLayer, why_not_frozen

__all__ = ["Decision", "FusedGlobalLayer", "Way", "decide", "why_not_frozen"]
