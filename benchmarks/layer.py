"""The Global layer against the 3x3 convolution of the same shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.measure import count
from globalcnn.nn import GlobalLayer
from globalcnn.ops import PDE, use_backend
from globalcnn.optimize import Variant as NetworkVariant
from globalcnn.optimize.variant import prepare as prepare_variant

from .results import Cell, Comparison, Progress, Settings, Side
from .rounds import Run, Variant, reason, timed_in_rounds

SHAPES = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (16, 24, 56, 56), (16, 96, 14, 14))
STEPS = (1, 5)
FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels-last": torch.channels_last,
}
NOTES = (
    "The allocator is warm: the same tensors again and again.",
    "The layer by the eager backend is shown for comparison; the ratio is of each side's fastest variant. Fused: "
    "the layer as optimize_for_inference puts it into a network, where a call looks nothing up.",
    "Roofline, measured in the same run: bytes, a copy of the map; arithmetic, a matrix product of as many "
    "multiply-adds as the layer has; call, the layer on a map of one pixel.",
    "With more steps than one the same layer of one step is measured in the same rounds, for comparison.",
)
ROOFLINE = "roofline: "


def compare_layers(settings: Settings, progress: Progress) -> Comparison:
    """The table `layer`."""
    shapes, steps = (((2, 8, 8, 8),), (1,)) if settings.quick else (SHAPES, STEPS)
    cells = []
    for shape in shapes:
        for k in steps:
            for training in (False, True):
                what = "forward + backward" if training else "forward"
                name = f"{'x'.join(map(str, shape))}, K = {k}, {what}"
                progress(name)
                cells.append(_cell(name, shape, k, training, settings))
    return Comparison("layer", "A Global layer against a 3x3 convolution", tuple(cells), NOTES)


def _cell(name: str, shape: tuple[int, ...], steps: int, training: bool, settings: Settings) -> Cell:
    channels = shape[1]
    facts = {"shape": list(shape), "steps": steps, "training": training}
    try:
        torch.manual_seed(0)
        layer = GlobalLayer(channels, PDE(steps=steps))
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        x = torch.randn(shape)
    except Exception as error:  # a cell that fails is recorded
        empty = Side("GlobalLayer"), Side("convolution")
        return Cell(name, *empty, images=shape[0], facts=facts, failure=reason(error))
    ours = [
        Variant(f"{words}{about}", _preparing(layer, x, fmt, training, eager), competes=not eager)
        for about, eager in (("", False), (", eager backend", True))
        for words, fmt in FORMATS.items()
    ]
    if not training:
        ours = _fused(layer, x) + ours + _roofline(layer, x)
        if steps > 1:
            ours += _fused(GlobalLayer(channels), x, "K = 1, ", competes=False)
    theirs = [Variant(words, _preparing(conv, x, fmt, training, False)) for words, fmt in FORMATS.items()]
    sides = (("GlobalLayer", ours), ("convolution", theirs))
    return timed_in_rounds(name, *sides, settings, images=shape[0], facts=facts)


def _fused(layer: nn.Module, x: Tensor, prefix: str = "", *, competes: bool = True) -> list[Variant]:
    """The layer as `optimize_for_inference` puts it into a network: nothing is looked up at a call."""

    def preparing(fmt: torch.memory_format) -> Callable[[], Run]:
        def prepare() -> Run:
            whole = prepare_variant(copy.deepcopy(layer).eval(), NetworkVariant(fused=True))[0]
            return forward(whole, x.clone().contiguous(memory_format=fmt))

        return prepare

    return [Variant(f"{prefix}fused, {words}", preparing(fmt), competes) for words, fmt in FORMATS.items()]


def _roofline(layer: nn.Module, x: Tensor) -> list[Variant]:
    """What the layer cannot be faster than, as variants that do not compete."""
    counts = count(layer, x.shape[1:])
    side = 512
    rows = max(1, round(len(x) * counts.macs / side**2))

    def copying() -> Run:
        to = torch.empty_like(x)
        return lambda: to.copy_(x)

    def multiplying() -> Run:
        left, right, to = torch.randn(rows, side), torch.randn(side, side), torch.empty(rows, side)
        return lambda: torch.mm(left, right, out=to)

    def calling() -> Run:
        whole = prepare_variant(copy.deepcopy(layer).eval(), NetworkVariant(fused=True))[0]
        return forward(whole, x[:1, :, :1, :1].contiguous())

    ways = {"bytes": copying, "arithmetic": multiplying, "call": calling}
    return [Variant(ROOFLINE + word, prepare, competes=False) for word, prepare in ways.items()]


def _preparing(module: nn.Module, x: Tensor, fmt: torch.memory_format, training: bool, eager: bool) -> Any:
    def prepare() -> Run:
        own = copy.deepcopy(module).to(memory_format=fmt).train(training)
        image = x.clone().contiguous(memory_format=fmt)
        step = forward_backward(own, image) if training else forward(own, image)

        def run() -> Any:
            with use_backend("eager") if eager else nullcontext():
                return step()

        return run

    return prepare


def forward(module: nn.Module, x: Tensor) -> Run:
    """A forward in inference mode."""

    def run() -> Any:
        with torch.inference_mode():
            return module(x)

    return run


def forward_backward(module: nn.Module, x: Tensor) -> Run:
    """A forward, and a backward to the input and all weights, for a fixed gradient of the output."""
    x.requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(module(x))

    def run() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(grad)

    return run
