"""BatchNorm folded into the convolution or linear layer before it, in a network in eval mode.

A pair becomes one layer only where that is provably the same function: the traced forward passes the
convolution's output to the norm and nowhere else, each is called once and has one name, nothing else reads
their weights, and both are PyTorch's own classes without hooks, parametrisations or a replaced forward.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..nn import GlobalLayer
from ..nn.blocks import Foldable
from ..nn.fused import FusedGlobalLayer
from ..nn.implicit import ImplicitLayer
from ..nn.narrow import NarrowConv2d
from .replace import replace_module
from .shapes import ShapeTrace, trace_shapes

# exact classes: a subclass may use its weight in another way
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv2d, NarrowConv2d, Conv2dSame)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, BatchNormAct2d)
_LEAVES = (GlobalLayer, FusedGlobalLayer, ImplicitLayer, NarrowConv2d, _BatchNorm)
_KINDS: tuple[type[Any], ...] = (*_CONVOLUTIONS, *_NORMS, nn.Linear, nn.BatchNorm1d)
_FORWARDS = {kind: kind.forward for kind in _KINDS}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# what an instance may hold in the place of its class's method
_METHODS = (
    "forward",
    "_conv_forward",
    "_check_input_dim",
    "_call_impl",
    "_slow_forward",
    "_compiled_call_impl",
)


@dataclass(frozen=True)
class Folding:
    """The result of `fold_batch_norms`.

    norms: qualified names of the norms that were folded; notes: why others were not, as sentences.
    """

    norms: tuple[str, ...]
    notes: tuple[str, ...]


def fold_batch_norms(model: nn.Module, example: Tensor | None = None) -> Folding:
    """Fold every BatchNorm that directly follows a convolution or linear layer into it, in place.

    `model` must be in eval mode; a norm in training mode or without running statistics is kept. It
    folds `Conv2d` with `BatchNorm2d`, including timm's `Conv2dSame` and `BatchNormAct2d`, and, given an
    example, `Linear` with `BatchNorm1d`. A folded norm becomes an identity, or timm's dropout and activation.
    A layer with a folded form of its own (`nn.blocks.Foldable`) is replaced by that form.

    example: a batch for the network. A network that torch.fx cannot trace as a whole is traced part by part,
    and the example shows whether its layers are called only by those parts; without one, they are kept.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fold_batch_norms(net).norms
    ('1',)
    >>> net[1]
    Identity()
    """
    calls = None if example is None else trace_shapes(model, example)
    work = _Work(model, calls)
    work.fold_layers()
    for name, root in _roots(model):
        work.fold_in(root, name)
    return Folding(tuple(work.norms), tuple(work.notes))


def _roots(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network, and the ordinary networks inside layers that are traced as one node."""
    yield "", model
    for name, layer in list(model.named_modules()):
        if type(layer) is not GlobalLayer or is_altered(layer):
            continue
        prefix = f"{name}." if name else ""
        if layer.init is not None:
            yield f"{prefix}init", layer.init
        if FusedGlobalLayer.from_layer(layer) is None:  # the fused layer folds these itself
            for part in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y"):
                if hasattr(layer, part):
                    yield f"{prefix}{part}", layer.get_submodule(part)


class _Work:
    """One pass over a network: the calls seen so far, and the norms folded."""

    def __init__(self, model: nn.Module, calls: ShapeTrace | None) -> None:
        self.model = model
        self.calls = calls
        self.names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self.norms: list[str] = []
        self.notes: list[str] = []

    def fold_layers(self) -> None:
        """Replace the layers that have a folded form of their own by that form."""
        for name, layer in list(self.model.named_modules()):
            if not name or not isinstance(layer, Foldable) or any(is_altered(m) for m in layer.modules()):
                continue
            folded = layer.folded()
            if folded is None:
                continue
            try:
                replace_module(self.model, name, new=folded)
            except UserError as error:
                self.notes.append(f"{name} stays: {error}")
                continue
            self.norms.append(f"{name}.norm")

    def fold_in(self, root: nn.Module, name: str) -> None:
        """Fold in the part `root` of the network; where it cannot be traced, in its children."""
        if isinstance(root, _LEAVES) or not any(isinstance(m, _BatchNorm) for m in root.modules()):
            return
        prefix = f"{name}." if name else ""
        tracer = _Tracer()
        try:
            if "forward" in vars(root):
                raise TypeError("its forward was replaced on the instance")
            graph = tracer.trace_cleanly(root)
        except Exception as error:  # a network's Python code may do anything with a placeholder for a tensor
            if not isinstance(root, (nn.ModuleList, nn.ModuleDict)):
                reason = (str(error).splitlines() or [""])[0][:100]
                self.notes.append(
                    f"{name or 'the network'} ({type(root).__name__}) cannot be traced: {reason}"
                )
            for part, child in list(root.named_children()):
                self.fold_in(child, prefix + part)
            return
        modules = dict(root.named_modules(remove_duplicate=False))
        calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            source = _only_input(node)
            if source is None or _only_input(source) is None or len(source.users) != 1:
                continue
            before, norm = modules[str(source.target)], modules[str(node.target)]
            once = calls[before] == calls[norm] == self.names[before] == self.names[norm] == 1
            if once and not tracer.reads(before, norm):
                self.fold_pair(name, prefix + str(source.target), prefix + str(node.target))

    def fold_pair(self, part: str, before_name: str, norm_name: str) -> None:
        """Fold the norm into the layer before it, if their kinds and their calls allow it."""
        before, norm = self.model.get_submodule(before_name), self.model.get_submodule(norm_name)
        if not self._pair_fits(before, norm, before_name):
            return
        if part and not self._called_by(part, before_name, norm_name):
            self.notes.append(f"{norm_name} stays: an example must show that only {part} calls it")
            return
        # what follows a norm inside of timm's class for both
        after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        try:
            replace_module(self.model, norm_name, new=after.eval())
            replace_module(self.model, before_name, new=_folded(before, norm))
        except UserError as error:
            replace_module(self.model, norm_name, new=norm)
            self.notes.append(f"{norm_name} stays: {error}")
            return
        self.norms.append(norm_name)

    def _pair_fits(self, before: nn.Module, norm: nn.Module, before_name: str) -> bool:
        pair = (before, norm)
        if any(is_altered(m) or m.training or _FORWARDS.get(type(m)) is not type(m).forward for m in pair):
            return False
        if type(before) in _CONVOLUTIONS and type(norm) in _NORMS:
            pass
        elif type(before) is nn.Linear and type(norm) is nn.BatchNorm1d:
            # of three dimensions, the norm takes the second one for the channels, not the last
            outputs = self.calls.of(before_name) if self.calls is not None else ()
            if not outputs or any(len(call.output_shape) != 2 for call in outputs):
                return False
        else:
            return False
        weight, mean = before._parameters.get("weight"), norm._buffers.get("running_mean")
        if weight is None or mean is None or norm._buffers.get("running_var") is None:
            return False
        alike = mean.dtype == weight.dtype and mean.device == weight.device and len(mean) == len(weight)
        return alike and weight.is_floating_point()

    def _called_by(self, part: str, *names: str) -> bool:
        """Whether, on the example, every call of the part makes one call of each, and nothing else does."""
        if self.calls is None:
            # a Global layer calls its own parts, each once
            owner = self.model.get_submodule(part.rpartition(".")[0])
            return type(owner) is GlobalLayer
        wanted = len(self.calls.of(part))
        return wanted > 0 and all(
            len(calls := self.calls.of(name)) == wanted
            and all(name == part or self.calls.inside(call, part) for call in calls)
            for name in names
        )


# a tracer replaces nn.Module's own methods, and puts back what it found: not two of them at once
TRACING = threading.RLock()


class _Tracer(torch.fx.Tracer):
    """Traces a forward down to PyTorch's layers, Global and implicit layers, timm's leaf modules, and modules
    that a user altered. Networks that other threads call meanwhile run as ever."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self.leaves = (*_LEAVES, *get_notrace_modules())  # type: ignore[no-untyped-call]
        self._read: set[int] = set()
        self._thread = threading.get_ident()

    def trace_cleanly(self, root: nn.Module) -> torch.fx.Graph:
        """The graph of `root`; its forward's writes to attributes are undone, since they hold
        placeholders."""
        before = [(m, dict(vars(m))) for m in root.modules()]
        try:
            with TRACING:
                return self.trace(root)
        finally:
            for module, attributes in before:
                vars(module).clear()
                vars(module).update(attributes)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of any module of the process while this one traces."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether calls of `module` are one node of the graph."""
        return isinstance(module, self.leaves) or is_altered(module) or super().is_leaf_module(module, name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """An attribute of a module that a traced forward reads: tensors are recorded."""
        if threading.get_ident() != self._thread:
            return attr_val
        if isinstance(attr_val, Tensor):
            self._read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def reads(self, *modules: nn.Module) -> bool:
        """Whether the forward that was traced read a weight or statistic of one of the modules itself."""
        return any(id(t) in self._read for m in modules for t in (*m.parameters(), *m.buffers()))


def _only_input(node: torch.fx.Node) -> torch.fx.Node | None:
    """The node that a call of a module takes as its one argument; None for any other node."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return node.args[0] if isinstance(node.args[0], torch.fx.Node) else None


def is_altered(module: nn.Module) -> bool:
    """Whether a call of the module may do more than its class says: hooks, methods on the instance."""
    return (
        any(vars(module).get(method) is not None for method in _METHODS)
        or any(getattr(module, hooks, None) for hooks in _HOOKS)
        or torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


@torch.no_grad()
def _folded(before: nn.Module, norm: Any) -> nn.Module:
    """A copy of the layer with the norm's scale and shift in its weight and bias, computed in float64."""
    weight, bias = before._parameters["weight"], before._parameters.get("bias")
    assert weight is not None
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64

    def wide(tensor: Any, default: float) -> Tensor:
        if tensor is None:
            return torch.full((len(weight),), default, dtype=dtype, device=weight.device)
        return tensor.to(dtype)  # type: ignore[no-any-return]

    scale = wide(norm.weight, 1.0) * torch.rsqrt(wide(norm.running_var, 1.0) + norm.eps)
    shift = wide(norm.bias, 0.0) + (wide(bias, 0.0) - wide(norm.running_mean, 0.0)) * scale
    new = copy.deepcopy(before)
    scaled = weight.to(dtype) * scale.view(-1, *[1] * (weight.ndim - 1))
    new.weight = nn.Parameter(scaled.to(weight.dtype), weight.requires_grad)
    new.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
    return new
