"""Gated sweeps against Du Fort-Frankel, in rounds of one process: the layer of one step, and a training step.

python -m benchmarks.schemes [--rounds 200] [--seconds 30] [--out results/bench/schemes.json]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from globalcnn import create_model
from globalcnn.cli.console import say
from globalcnn.files import write_json
from globalcnn.nn import GlobalLayer
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import PDE, Boundary, DuFortFrankel, GatedSweeps, Scheme

from . import machine
from .layer import FORMATS, SHAPES, forward, forward_backward
from .results import Cell, Comparison, Progress, Settings, Side
from .rounds import Run, Variant, reason, timed_in_rounds
from .training import BATCH, PAIR, TINY, training_step

ROOT = Path(__file__).resolve().parent.parent
NOTES = (
    "One step (K = 1), transport gates. Each side at its fastest variant; both with fused kernels. Forward: the "
    "layer as optimize_for_inference puts it into a network. Du Fort-Frankel is periodic, the sweeps Neumann: "
    "the defaults of each.",
    "In the training step the first axis alternates from layer to layer.",
)
NAMES = ("gated sweeps", "Du Fort-Frankel")


def compare_schemes(settings: Settings, progress: Progress) -> Comparison:
    """The table `schemes`."""
    shapes = ((2, 16, 8, 8),) if settings.quick else SHAPES
    cells = []
    for shape in shapes:
        for what in ("forward", "forward + backward"):
            for first in ("x", "y"):
                name = f"{'x'.join(map(str, shape))}, {first} first, {what}"
                progress(name)
                cells.append(_layer_cell(name, shape, GatedSweeps(first=first), what, settings))
    name, batch = (TINY if settings.quick else PAIR)[0], 4 if settings.quick else BATCH
    progress(name)
    cells.append(_training_cell(name, batch, settings))
    return Comparison("schemes", "Gated sweeps against Du Fort-Frankel", tuple(cells), NOTES)


def _layer_cell(name: str, shape: tuple[int, ...], sweeps: Scheme, what: str, settings: Settings) -> Cell:
    def variants(scheme: Scheme) -> list[Variant]:
        return [
            Variant(words, _preparing(shape, scheme, fmt, what != "forward"))
            for words, fmt in FORMATS.items()
        ]

    sides = ((NAMES[0], variants(sweeps)), (NAMES[1], variants(DuFortFrankel())))
    facts = {"shape": list(shape), "training": what != "forward"}
    return timed_in_rounds(name, *sides, settings, images=shape[0], facts=facts)


def _preparing(
    shape: tuple[int, ...], scheme: Scheme, fmt: torch.memory_format, training: bool
) -> Callable[[], Run]:
    def prepare() -> Run:
        torch.manual_seed(0)
        layer = GlobalLayer(shape[1], PDE(scheme=scheme)).to(memory_format=fmt)
        x = torch.randn(shape).contiguous(memory_format=fmt)
        if training:
            return forward_backward(layer.train(), x)
        return forward(FusedGlobalLayer(layer.eval()), x)

    return prepare


def with_sweeps(model: nn.Module) -> nn.Module:
    """The same network, its Global layers with gated sweeps; the first axis alternates."""
    layers = [m for m in model.modules() if isinstance(m, GlobalLayer)]
    for i, layer in enumerate(layers):
        scheme = GatedSweeps(first="xy"[i % 2])  # type: ignore[arg-type]
        layer.pde = dataclasses.replace(layer.pde, scheme=scheme, boundary=Boundary.NEUMANN)
    return model


def _training_cell(network: str, batch: int, settings: Settings) -> Cell:
    name = f"{network}, training step, batch {batch}"
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(batch) % 10

    def variants(sweeps: bool) -> list[Variant]:
        def preparing(fmt: torch.memory_format) -> Callable[[], Run]:
            def prepare() -> Run:
                torch.manual_seed(0)
                model = create_model(network).train()
                model = (with_sweeps(model) if sweeps else model).to(memory_format=fmt)
                return training_step(model, x.contiguous(memory_format=fmt), y, compiled=False)

            return prepare

        return [Variant(words, preparing(fmt)) for words, fmt in FORMATS.items()]

    try:
        sides = ((NAMES[0], variants(True)), (NAMES[1], variants(False)))
        return timed_in_rounds(name, *sides, settings, images=batch, facts={"batch": batch, "training": True})
    except Exception as error:  # a cell that fails is recorded
        return Cell(name, Side(NAMES[0]), Side(NAMES[1]), images=batch, failure=reason(error))


def main() -> None:
    """Measure, print the ratios, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="at most, per cell")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench/schemes.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings(args.rounds, args.seconds, args.quick)
    load = machine.load_averages()
    facts = {
        "settings": dataclasses.asdict(settings),
        "load_before": load,
        "loaded": machine.is_loaded(load),
        "allocator": machine.keep_memory(),
        **machine.facts(seed=0),
    }
    result = compare_schemes(settings, say)
    for cell in result.cells:
        say(f"{cell.name}: {'failed' if cell.ratio is None else f'{cell.ratio:.3f}'} {cell.failure}")
    write_json(args.out, {**facts, "load_after": machine.load_averages(), "table": result.as_dict()})


if __name__ == "__main__":
    main()
