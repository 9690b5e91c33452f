"""Condensing of any CNN: a plan of what its repetitions give way to, and the network that it makes.

>>> import torch, globalcnn
>>> net = globalcnn.create_model("resnet18", num_classes=10)
>>> plan = globalcnn.condense.plan(net, torch.randn(1, 3, 64, 64), max_params=8_000_000, seconds=None)
>>> [stage.name for stage in plan.chosen]
['layer4']
>>> small = globalcnn.condense.apply(net, plan)
"""

from ..models.placeable import PLACEABLE as BLOCKS
from .applying import apply
from .data import DEFAULT_BLOCK, Cost, Plan, Stage, Untouched
from .planning import plan
from .recover import recover
from .recover_settings import Recovery
from .recover_steps import Recovered

__all__ = [
    "BLOCKS",
    "DEFAULT_BLOCK",
    "Cost",
    "Plan",
    "Recovered",
    "Recovery",
    "Stage",
    "Untouched",
    "apply",
    "plan",
    "recover",
]
