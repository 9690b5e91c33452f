"""`export`: a network as a file for an engine, compared there with the network before it is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from ..data import DataSource
from ..engines import bounds, exported_program
from ..engines.onnx_file import onnx_proto
from ..errors import UserError, UserTypeError
from ..graph.deployed import fuse_global_layers
from ..measure import Latency, latency
from ..models import Card, ModuleSource, source_of
from .accuracy import LabelledImages
from .arguments import checked_seconds, checked_target, copied_network, example_for
from .checking import TOLERANCE, Sizes, compare, hardly_depends, same_shape, several_shapes, sizes_of
from .int8 import Int8, quantised
from .report import Accuracy, ExportReport
from .target import Loaded


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor | Sequence[int] | None = None,
    to: str | None = None,
    dynamic: bool = False,
    card: Card | None = None,
    data: DataSource | None = None,
    int8: Int8 | None = None,
    seconds: float = 1.0,
    overwrite: bool = False,
) -> ExportReport:
    """Write `model` to a file for an inference engine: ONNX, OpenVINO, `torch.export` or ExecuTorch.

    BatchNorms are folded, Global layers take fewer and standard operators. The file is loaded in its engine
    and compared with `model` on several batches before it gets its name: no value may deviate by more than
    1e-4 of the largest one. `model` is not changed. One in training mode is exported as a copy in eval mode,
    and the report says so.

    Parameters
    ----------
    model: any network for images, with Global layers or without, in float32.
    path: the file: .onnx, .pt2 and .pte hold everything; an .xml has its weights in a .bin beside it, and an
        .onnx for "onnxruntime" its kernels in an .so.
    example: a batch (N, C, H, W) as it will come, or the size (C, H, W) of one image. Default: one image of
        the size that the card or the network tells.
    to: "onnx", "openvino", "pt2" or "executorch"; by default what the suffix says. Or "onnxruntime": an ONNX
        file whose Global layers are one operator each, of this library, and the kernels that ONNX Runtime
        computes them with, for this system and kind of processor, compiled once by its C++ compiler.
    dynamic: whether the file takes any batch and image size; by default the shape of the example alone,
        which engines run fastest. Not for "executorch".
    card: of the weights (`models.load_with_card`): its classes, mean and std are written into the file.
    data: its test images give the accuracy in the engine and in PyTorch; slow for large data.
    int8: convolutions and linear layers in 8 bits (`Int8()`), for "onnx" and "openvino"; Global layers stay
        in float32. It needs `data`: the ranges of activations come from its training images. The file must
        not lose more accuracy on the test images than `Int8.max_drop`; deviations are reported alone.
    seconds: about how long latencies are measured; 1. With 0 they are not.
    overwrite: whether to replace files that are there.

    Returns a report of the file; `print` shows it.
    Raises `UserError` or `UserTypeError` where an argument does not fit, `MissingExtra` where the engine is
    not installed, and `UserError` where the network cannot be exported or the file gives other outputs. Then
    nothing is written.

    >>> import tempfile, globalcnn
    >>> model = globalcnn.create_model("digits_global").eval()
    >>> with tempfile.TemporaryDirectory() as d:
    ...     report = export(model, f"{d}/digits.pt2", seconds=0)
    >>> report.input_shape, report.checks[0].deviation < 1e-4
    ((1, 1, 28, 28), True)
    """
    if not isinstance(int8, Int8 | None):
        raise UserTypeError(f"int8={int8!r} must be Int8(...), or None for float32")
    target = checked_target(path, to, overwrite=overwrite, int8=int8 is not None, dynamic=dynamic)
    if int8 is not None:
        data = int8.check(data)
    seconds = checked_seconds(seconds)
    network = copied_network(model)
    batch = example_for(network, example, card)
    tested = None if data is None else LabelledImages.of(data, card, batch, dynamic=dynamic)
    program, sizes = _program(network, batch, dynamic=dynamic, own_operators=target.own_operators)
    size = None if dynamic else len(batch)
    as_onnx = onnx_proto
    if int8 is not None and tested is not None:
        as_onnx = partial(quantised, network=network, data=tested.data, how=int8, batch=size)
    notes = (*_notes(model, little=hardly_depends(network, sizes.taken)), *bounds(program), *sizes.notes)
    timed = batch[:1] if dynamic else batch
    with target.written(program, Path(path), _about(model, card), as_onnx=as_onnx) as part:
        loaded = target.load(part)
        checks = compare(loaded, network, sizes, tolerance=TOLERANCE if int8 is None else math.inf)
        accuracy = None if tested is None else tested.accuracies(loaded, network, batch=size)
        if int8 is not None and accuracy is not None:
            _check_drop(accuracy, int8)
        times = _latencies(loaded, network, timed, seconds)
    return ExportReport(
        files={str(file): file.stat().st_size for file in target.files(Path(path))},
        target=target.name,
        engine=loaded.engine,
        input_name=loaded.input_name,
        input_shape=loaded.input_shape,
        operators=loaded.operators,
        checks=checks,
        timed_shape=tuple(timed.shape),
        engine_latency=times.get("engine"),
        pytorch_latency=times.get("pytorch"),
        accuracy=accuracy,
        notes=notes,
    )


def _check_drop(found: Accuracy, int8: Int8) -> None:
    """Raise `UserError` where 8 bits lose too much."""
    drop = round(100 * (found.pytorch - found.engine), 6)  # 0.5 points are 0.5, not 0.5000000004
    if not drop <= int8.max_drop:
        raise UserError(
            f"int8 loses {drop:.2f} points of accuracy on {found.images} test images of {found.data!r} "
            f"({100 * found.pytorch:.2f} -> {100 * found.engine:.2f} %), more than max_drop (--max-drop) "
            f"{int8.max_drop:g}; nothing was written. Calibrate with more images, or allow more"
        )


def _program(
    network: nn.Module, example: Tensor, *, dynamic: bool, own_operators: bool
) -> tuple[ExportedProgram, Sizes]:
    """The program, and the batches to compare; of two ways to trace, the one with the fewest refusals."""
    if own_operators:
        network, _ = fuse_global_layers(copy.deepcopy(network))
    if not dynamic:
        program = exported_program(network, example, dynamic=False, own_operators=own_operators)
        return program, Sizes(same_shape(example), [], ())
    batches = several_shapes(network, example)
    tried = []
    for ones in (True, False):
        program = exported_program(network, example, dynamic=True, ones=ones, own_operators=own_operators)
        tried.append((program, sizes_of(program, batches)))
        if not tried[-1][1].refused:
            break
    program, sizes = min(tried, key=lambda pair: len(pair[1].refused))
    sizes.check(example)
    return program, sizes


def _notes(model: nn.Module, *, little: bool) -> list[str]:
    notes = []
    if any(m.training for m in model.modules()):
        notes.append("the network was in training mode: the file holds a copy in eval mode")
    if little:
        notes.append(
            "the output is nearly the same for all images that were compared, as of untrained networks: the "
            "deviations say little"
        )
    return notes


def _about(model: nn.Module, card: Card | None) -> dict[str, Any]:
    """What the file says of the network: plain JSON by key."""
    source = source_of(model) if card is None else card.source
    about: dict[str, Any] = {} if isinstance(source, ModuleSource) else {"model": source.label}
    if card is not None:
        told = {"classes": list(card.classes), "mean": list(card.mean), "std": list(card.std)}
        about |= {key: value for key, value in told.items() if value}
    return about


def _latencies(loaded: Loaded, network: nn.Module, batch: Tensor, seconds: float) -> dict[str, Latency]:
    """Of the file in its engine and of the network in PyTorch, in alternating rounds."""
    if not seconds:
        return {}
    return latency(
        {"engine": loaded.run, "pytorch": network},
        batch,
        seconds=seconds,
        burst=seconds / 100,
        settle=seconds / 50,  # threads of the one called before spin for a while
        least=3,
    )
