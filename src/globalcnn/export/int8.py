"""Eight-bit ONNX models: static quantisation by ONNX Runtime, calibrated on training images.

Convolutions and linear layers compute with 8-bit weights (one scale per output channel) and activations (one
scale per tensor), written as pairs of QuantizeLinear and DequantizeLinear (QDQ). Global layers stay in
float32: their coefficients scale differences of neighbours, where rounding does not average out.

Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..data import DataSource
from ..engines import quiet
from ..engines.onnx_file import raw_proto, tidied
from ..errors import UserError
from ..nn import GlobalLayer
from ..nn.deployed import DeployedGlobalLayer

OPERATORS: Final = ("Conv", "Gemm", "MatMul")
DYNAMIC_BATCH: Final = 32  # images of a calibration batch, for files that take any number
FEWEST: Final = 16


@dataclass(frozen=True)
class Int8:
    """How to quantise. images: training images that the ranges of activations come from, 512; seed: which of
    them; max_drop: points of accuracy, in percent, that the file may lose on the test images, 0.5;
    reduced_range: weights in 7 bits, for processors whose 8-bit products may overflow (x86 without VNNI);
    None: as this processor needs.

    Raises `UserError` where a value does not fit.
    """

    images: int = 512
    max_drop: float = 0.5
    seed: int = 0
    reduced_range: bool | None = None

    def __post_init__(self) -> None:
        if type(self.images) is not int or self.images < FEWEST:
            raise UserError(f"images={self.images!r} to calibrate must be a whole number, {FEWEST} or more")
        number = isinstance(self.max_drop, (int, float)) and not isinstance(self.max_drop, bool)
        if not (number and math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UserError(f"max_drop={self.max_drop!r} must be a number of percentage points, 0 or more")

    def check(self, data: DataSource | None) -> DataSource:
        """The data, where it has enough training images; `UserError` otherwise."""
        if data is None:
            raise UserError(
                "int8 needs data (--data): training images to calibrate with, test images for the accuracy"
            )
        size = data.size("train")
        if size < self.images:
            raise UserError(
                f"int8 calibrates with {self.images} training images and the data {data.name!r} has {size}: "
                + (
                    f"give images={size} (--calibration-images {size}), or other data"
                    if size >= FEWEST
                    else f"give data with {FEWEST} or more"
                )
            )
        return data

    def facts(self) -> dict[str, Any]:
        """For the metadata of the file."""
        return {**asdict(self), "reduced_range": self.reduces()}

    def reduces(self) -> bool:
        """Whether weights take 7 bits."""
        return needs_reduced_range() if self.reduced_range is None else self.reduced_range


def needs_reduced_range() -> bool:
    """Whether this processor adds 8-bit products in 16 bits, where they overflow: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    ask = getattr(torch.cpu, "get_capabilities", None)
    known: Mapping[str, Any] = ask() if ask is not None else {}
    return not (known.get("avx512_vnni") or known.get("avx_vnni"))


def quantised(
    program: ExportedProgram, network: nn.Module, data: DataSource, how: Int8, *, batch: int | None
) -> Any:
    """The program of `network` as an ONNX model in 8 bits. batch: how many images it takes; None: any
    number.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    proto = raw_proto(program)
    layers = {_name(type(m)) for m in network.modules() if isinstance(m, GlobalLayer)}
    stay = [node.name for node in proto.graph.node if _is_of(node, {*layers, _name(DeployedGlobalLayer)})]
    tidied(proto)
    kinds = {node.op_type for node in proto.graph.node if node.name not in stay}
    if not kinds & set(OPERATORS):
        raise UserError("int8: the network has no convolution or linear layer outside of Global layers")
    name = proto.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        reader = _Reader(name, _batches(data, how, batch))
        try:
            quantize_static(
                proto,
                path,
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                reduce_range=how.reduces(),
                nodes_to_exclude=stay,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except UserError:  # of the data
            raise
        except Exception as error:  # a graph that the quantiser does not take raises many kinds
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"the network cannot be quantised by ONNX Runtime: {lines[0][:200]}") from error
        made = onnx.load(path)
    del made.metadata_props[:]  # a word of the tool's, not JSON
    made.metadata_props.add(key="int8", value=json.dumps(how.facts()))
    return made


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_of(node: Any, layers: set[str]) -> bool:
    """Whether the node was written for a layer of these classes."""
    told = [prop.value for prop in node.metadata_props if prop.key.endswith("class_hierarchy")]
    return any(f"'{name}'" in words for words in told for name in layers)


def _batches(data: DataSource, how: Int8, batch: int | None) -> Iterator[Tensor]:
    """Batches of training images without augmentation, `how.images` in all; the last one may repeat some."""
    size = batch or DYNAMIC_BATCH
    loader = data.loader("train", how.images, shuffle=True, seed=how.seed, skip_damaged=True)
    images, _ = next(iter(loader))
    for i in range(0, len(images), size):
        yield images[torch.arange(i, i + size) % len(images)]


class _Reader:
    """What ONNX Runtime asks for batches; None at the end."""

    def __init__(self, name: str, batches: Iterator[Tensor]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, Any] | None:
        found = next(self._batches, None)
        return None if found is None else {self._name: found.numpy()}
