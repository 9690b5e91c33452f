"""A network prepared for inference engines: norms folded, Global layers as fewer standard operators."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..nn import GlobalLayer
from ..nn.deployed import DeployedGlobalLayer, why_not_deployed
from .folding import fold_batch_norms, is_altered
from .replace import replace_module


def for_engines(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy of `model`, which must be in eval mode, for export to an engine: the same function.

    Global layers become `DeployedGlobalLayer`s where they have that form; norms are folded (`example` as for
    `fold_batch_norms`).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), GlobalLayer(8)).eval()
    >>> [type(m).__name__ for m in for_engines(net)]
    ['Conv2d', 'Identity', 'DeployedGlobalLayer']
    """
    made = copy.deepcopy(model)
    fold_batch_norms(made, example)  # while the init blocks have the names that the example's calls show
    for name, layer in list(made.named_modules()):
        if type(layer) is not GlobalLayer or any(is_altered(m) for m in layer.modules()):
            continue
        if why_not_deployed(layer) is None:
            made = replace_module(made, name, new=DeployedGlobalLayer(layer))
    return made
