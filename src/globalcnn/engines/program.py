"""From a network to a program of `torch.export`, for one shape or for any batch and image size."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from ..errors import UserError
from ..graph.deployed import for_engines
from ..graph.folding import TRACING
from ..models import NamedSource, model_info, source_of
from ..models.registry import list_models
from ..nn import GlobalLayer
from ..ops.schemes import AxisScheme
from .own_operator import with_own_operators

# what a program may hold besides functions of Python on numbers
_OF_TORCH = ("aten", "prims", "higher_order")
_SYMBOLIC = "onnx_symbolic"  # an operator that only an engine computes


def exported_program(
    network: nn.Module,
    example: Tensor,
    *,
    dynamic: bool,
    ones: bool = True,
    own_operators: bool = False,
) -> ExportedProgram:
    """`network`, in eval mode, as a program of PyTorch's own operators: norms folded, Global layers in their
    form for engines.

    example: a batch of the shape that the program takes; dynamic: it takes any batch and image size; ones:
    whether a length of 1 is a case of its own, so that a map of one pixel has a program for such maps alone;
    own_operators: fused Global layers of the network become one operator each, which is in no standard.
    Raises `UserError` where that is impossible, with the reason.
    """
    axes, tracing = None, cast(Any, _config)
    if dynamic:
        _check_takes_any_size(network)
        example = example if len(example) > 1 else torch.cat([example, example])  # 1 would stay 1
        axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with TRACING, quiet(), torch.no_grad(), tracing.patch(backed_size_oblivious=not ones):
            made = for_engines(network, example).eval()
            made = with_own_operators(made) if own_operators else made
            program = torch.export.export(made, (example,), dynamic_shapes=axes, strict=False)
    except Exception as error:  # the tracer runs a user's forward
        raise UserError(_why_not(network, error, dynamic)) from error
    _check_operators(program, (*_OF_TORCH, _SYMBOLIC) if own_operators else _OF_TORCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # places in files of this machine
    return program


def bounds(program: ExportedProgram) -> tuple[str, ...]:
    """The smallest and the largest height and width that tracing found, in words, where there are such."""
    name = program.graph_signature.user_inputs[0]
    images = next(node for node in program.graph.nodes if node.name == name).meta["val"]
    found = []
    for axis, length in zip(("height", "width"), images.shape[2:], strict=True):
        if not isinstance(length, torch.SymInt):
            continue
        allowed = program.range_constraints[length.node.expr]
        most = f", at most {allowed.upper}" if allowed.upper.is_Integer else ""
        if most or allowed.lower > 2:
            found.append(f"it takes images of {axis} {allowed.lower} or more{most}")
    return tuple(found)


def _check_takes_any_size(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, GlobalLayer) and isinstance(layer.pde.scheme, AxisScheme):
            raise UserError(
                f"the network cannot be exported for any image size: the sweeps of {name or 'the layer'} "
                f"({layer.pde.scheme.name}) are written out for the size of their map; leave dynamic "
                "(--dynamic) out and export a file for each size"
            )


def _check_operators(program: ExportedProgram, allowed: tuple[str, ...]) -> None:
    for node in program.graph.nodes:
        namespace = getattr(node.target, "namespace", None)
        if node.op == "call_function" and namespace not in (None, *allowed):
            raise UserError(
                f"the network cannot be exported: it calls the operator {node.target}, which is not one of "
                "PyTorch's own"
            )


def _why_not(network: nn.Module, error: Exception, dynamic: bool) -> str:
    source = source_of(network)
    if isinstance(source, NamedSource) and source.name in list_models():
        known = dict(model_info(source.name).cannot).get("export")
        if known is not None:
            return f"the network {source.name!r} cannot be exported: {known}"
    reason = _reason(error)
    if dynamic:
        return (
            f"the network cannot be exported for any batch and image size: {reason}; leave dynamic "
            "(--dynamic) out and export a file for each shape"
        )
    return f"the network cannot be exported: {reason}"


def _reason(error: Exception) -> str:
    """What an error of torch.export says, in one line."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    constraints = [line[2:] for line in lines if line.startswith("- ")]
    return (constraints or lines)[0][:250].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings and log lines, and the graphs that they print when they fail."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
