"""Convolution and BatchNorm made one convolution, in place, in a network in eval mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch.fx
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..nn import GlobalLayer
from ..nn.fused import FusedGlobalLayer
from ..nn.solving import SolveBlock

# exact classes: what these are derived into may use its weight in another way
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_LEAVES = (GlobalLayer, FusedGlobalLayer, SolveBlock, _BatchNorm)


class _Tracer(torch.fx.Tracer):
    """Follows a forward down to PyTorch's layers, ours that solve, and those that timm says to stop at."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self.leaves = (*_LEAVES, *get_notrace_modules())  # type: ignore[no-untyped-call]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, name)


def fold_batch_norms(model: nn.Module) -> tuple[int, list[str]]:
    """Fold every BatchNorm that directly follows a convolution into it; how many, and what stood in the way.

    `model` is changed; it must be in eval mode. A pair is folded where the traced forward passes the
    convolution's output to the norm and nowhere else, and both are called once. Where a network cannot be
    traced as a whole, its parts are traced one by one.
    """
    notes: list[str] = []
    called_twice = {m for m, n in _names(model).items() if n > 1}
    folded = sum(_fold_in(root, name, called_twice, notes) for name, root in _roots(model))
    return folded, notes


def _names(model: nn.Module) -> Counter[nn.Module]:
    """Under how many names each module is in the network."""
    return Counter(module for _, module in model.named_modules(remove_duplicate=False))


def _roots(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network, and inside the layers that are traced as one node what is ordinary network again."""
    yield "", model
    for name, layer in model.named_modules():
        if isinstance(layer, GlobalLayer):
            if layer.init is not None:
                yield f"{name}.init", layer.init
            if FusedGlobalLayer.from_layer(layer) is None:  # the fused form folds these by itself
                for part in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y"):
                    if hasattr(layer, part):
                        yield f"{name}.{part}", layer.get_submodule(part)


def _fold_in(root: nn.Module, name: str, called_twice: set[nn.Module], notes: list[str]) -> int:
    if isinstance(root, _LEAVES) or not any(isinstance(m, _NORMS) for m in root.modules()):
        return 0
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # whatever a network's Python code does with a stand-in for a tensor
        if not isinstance(root, (nn.ModuleList, nn.ModuleDict)):
            reason = (str(error).splitlines() or [""])[0][:100]
            notes.append(f"{name or 'the network'} ({type(root).__name__}) cannot be traced: {reason}")
        prefix = f"{name}." if name else ""
        return sum(
            _fold_in(child, prefix + part, called_twice, notes) for part, child in root.named_children()
        )
    return _fold_pairs(root, graph, called_twice)


def _fold_pairs(root: nn.Module, graph: torch.fx.Graph, called_twice: set[nn.Module]) -> int:
    modules = dict(root.named_modules(remove_duplicate=False))
    calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")
    folded = 0
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, torch.fx.Node) or source.op != "call_module":
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        alone = len(source.users) == 1 and calls[conv] == calls[norm] == 1
        if not alone or {conv, norm} & called_twice or not _may_fold(conv, norm):
            continue
        _replace(root, str(source.target), fuse_conv_bn_eval(conv, norm))
        # what follows a norm inside of timm's class for both
        after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        _replace(root, str(node.target), after.eval())
        folded += 1
    return folded


def _may_fold(conv: nn.Module, norm: nn.Module) -> bool:
    if type(conv) not in _CONVOLUTIONS or type(norm) not in _NORMS:
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in (conv, norm)):
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    statistics = norm.running_mean is not None and norm.running_var is not None
    return statistics and norm.running_mean.dtype == conv.weight.dtype  # type: ignore[union-attr]


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
