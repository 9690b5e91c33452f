"""A program as an ONNX model of standard operators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from ..errors import UserError
from .own_operator import DOMAIN
from .program import quiet

INPUT: Final = "images"
OUTPUT: Final = "output"
AXES: Final = ("batch", "channels", "height", "width")
MOST_BYTES: Final = 2**31 - 2**24  # of weights in one ONNX file, whose format ends at 2 GiB


def onnx_proto(program: ExportedProgram, *, own_operators: bool = False) -> Any:
    """The program as an ONNX model of standard operators, without traces of the machine that made it.

    own_operators: it may hold this library's as well (`own_operator.py`).
    Raises `UserError` where it has no such form.
    """
    return tidied(raw_proto(program, own_operators=own_operators))


def raw_proto(program: ExportedProgram, *, own_operators: bool = False) -> Any:
    """As `onnx_proto`; each node tells in its metadata_props which module it comes from."""
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > MOST_BYTES:
        raise UserError(
            f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds at most 2: export to 'pt2'"
        )
    outputs = [OUTPUT] if len(program.graph_signature.user_outputs) == 1 else None
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs
            )
        proto = made.model_proto
    except Exception as error:  # an operator without a translation raises many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the network cannot be written as ONNX: {lines[0][:200]}") from error
    known = ("", "ai.onnx", *([DOMAIN] if own_operators else []))
    others = sorted({f"{n.domain}::{n.op_type}" for n in nodes_of(proto.graph) if n.domain not in known})
    if others or proto.functions:
        raise UserError(
            f"the network cannot be written as ONNX: {', '.join(others)} are not among its standard operators"
        )
    return proto


def tidied(proto: Any) -> Any:
    """The model, changed: axes of any length named, and no places in source files."""
    graph = proto.graph
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {d.dim_param: name for d, name in zip(axes, AXES, strict=False) if d.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)
    for node in nodes_of(graph):
        del node.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    return proto


def nodes_of(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_of(inner)


def named_axes(shape: Iterable[Any]) -> tuple[int | str, ...]:
    """The lengths of the axes of images; the name of the axis where any length will do.

    >>> named_axes((None, 3, "s7", 32))
    ('batch', 3, 'height', 32)
    """
    return tuple(d if type(d) is int else name for d, name in zip(shape, AXES, strict=False))
