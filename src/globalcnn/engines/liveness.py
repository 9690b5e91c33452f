"""Peak memory of activations: which tensors of a program are alive at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

_SAME_MEMORY = {"view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "detach", "alias"}


@dataclass(frozen=True)
class Memory:
    """Bytes of a program: of its weights, and of the activations at the operator where most are alive.

    at: that operator; activations count inputs and outputs of the program too.
    """

    weights: int
    activations: int
    at: str


def memory_of(program: ExportedProgram) -> Memory:
    """Weights, and the peak of the activations by a liveness count.

    Each tensor takes memory from the operator that makes it to the last one that reads it, the input from
    the start, the output to the end; while an operator runs, its inputs and outputs are alive together.
    Reshapes take none. Operators' own scratch memory is not counted, nor that an elementwise operator could
    write over its input.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Conv2d(2, 1, 1, bias=False))
    >>> found = memory_of(torch.export.export(net, (torch.zeros(1, 1, 4, 4),)))
    >>> found.weights, found.activations
    (16, 192)
    """
    nodes = list(program.graph.nodes)
    names = {
        **program.graph_signature.inputs_to_parameters,
        **program.graph_signature.inputs_to_buffers,
        **getattr(program.graph_signature, "inputs_to_lifted_tensor_constants", {}),
    }
    owner: dict[Any, Any] = {}  # the node whose memory a node lies in
    size: dict[Any, int] = {}
    last: dict[Any, int] = {}
    for i, node in enumerate(nodes):
        if node.op == "placeholder" and node.name in names:
            continue
        sources = [owner[n] for n in node.all_input_nodes if n in owner]
        for source in sources:
            last[source] = i
        if node.op == "output":
            continue
        kind = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        shares = kind in _SAME_MEMORY or getattr(node.target, "__name__", "") == "getitem"
        if shares and sources:
            owner[node] = sources[0]
            continue
        bytes_ = _bytes(node.meta.get("val"))
        if bytes_:
            owner[node], size[node], last[node] = node, bytes_, i
    peak, at = 0, ""
    alive: dict[Any, int] = {n: size[n] for n in size if n.op == "placeholder"}
    for i, node in enumerate(nodes):
        if node in size:
            alive[node] = size[node]
        if sum(alive.values()) > peak:
            peak, at = sum(alive.values()), node.name
        for n in [n for n in alive if last[n] <= i]:
            del alive[n]
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    weights += sum(t.numel() * t.element_size() for t in program.constants.values() if isinstance(t, Tensor))
    return Memory(weights, peak, at)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return 0
