"""Channels pruned by Torch-Pruning: groups of coupled channels, the smallest norms first.

Source: Fang, Ma, Song, Mi and Wang, "DepGraph: Towards any structural pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.errors import MissingExtra
from globalcnn.models import ModuleSource
from globalcnn.models.source import stamp

LARGEST_RATIO = 0.9  # of the channels of one group, where all groups are ranked together


def pruned(
    model: nn.Module, example: Tensor, ratio: float, *, round_to: int | None = None, ranked_together: bool
) -> nn.Module:
    """A copy of `model` without the share `ratio` of its channels; outputs of the last linear layer stay.

    round_to: channels left in a group are a multiple of it. ranked_together: all groups are ranked in one
    list, so that some lose more channels than others; else each loses the same share.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtra("torch-pruning", feature="channel pruning", extra="benchmarks") from error
    network = copy.deepcopy(model)
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    with torch.enable_grad():
        pruner: Any = torch_pruning.pruner.GroupNormPruner(
            network,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=ranked_together,
            pruning_ratio=ratio,
            max_pruning_ratio=LARGEST_RATIO,
            round_to=round_to,
            ignored_layers=linear[-1:],
        )
        pruner.step()
    network.zero_grad(set_to_none=True)
    for name, p in network.named_parameters():
        p.requires_grad_(flags[name])
    return stamp(network, ModuleSource(type(network).__name__))  # not as the original is built
