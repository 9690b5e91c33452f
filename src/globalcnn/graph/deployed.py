"""A network prepared for inference: norms folded, Global layers as fewer standard operators, or as one."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..errors import UserError
from ..nn import GlobalLayer
from ..nn.deployed import DeployedGlobalLayer, why_not_deployed
from ..nn.fused import FusedGlobalLayer
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


def fuse_global_layers(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """`model`, changed, which must be in eval mode: Global layers with that form become `FusedGlobalLayer`s.

    Also returns a note for each that could not be put there. Layers of subclasses, whose methods it would
    bypass, and those with hooks stay.
    """
    notes = []
    for name, layer in list(model.named_modules()):
        if type(layer) is not GlobalLayer or is_altered(layer):
            continue
        fused = FusedGlobalLayer.from_layer(layer)
        if fused is None:
            continue
        try:
            model = replace_module(model, name, new=fused.eval())
        except UserError as error:
            notes.append(f"{name} is not fused: {error}")
    return model, notes
