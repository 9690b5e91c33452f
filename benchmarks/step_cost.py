"""What a step of training costs: by Muon beside SGD, and plain beside compiled, in rounds side by side.

    python -m benchmarks.step_cost --rounds 7               on an otherwise idle machine, about five minutes
    python -m benchmarks.step_cost --rounds 7 --float32     plain beside compiled in float32, and bf16 beside them

Writes results/per-hour/step-cost.json, with `--float32` step-cost-float32.json, for processors without instructions for
bfloat16; `python -m benchmarks.per_hour --collect` shows both in docs/accuracy-per-hour.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.files import read_json, write_json
from globalcnn.measure import environment, latency
from globalcnn.train import Recipe
from globalcnn.train.setting_up import make_optimizer

from .pages import RESULTS, hardware, table
from .rounds import Run, outside_inference
from .training import training_step

FOLDER = RESULTS / "per-hour"
PATH, FLOAT32_PATH = FOLDER / "step-cost.json", FOLDER / "step-cost-float32.json"
CLASSES = 100
HEADS = ("network", "images")


@dataclass(frozen=True)
class Case:
    """Images of a batch for a network: `batch` of `size` x `size`."""

    network: str
    size: int
    batch: int


@dataclass(frozen=True)
class Way:
    """How a step is made."""

    optimizer: str = "muon"
    channels_last: bool = True
    compiled: bool = False
    bf16: bool = False


CIFAR = (
    Case("resnet_global_tiny_cifar", 32, 128),
    Case("resnet_global_cifar", 32, 128),
    Case("resnet32_cifar", 32, 128),
)
BY_OPTIMIZER = (
    *CIFAR,
    Case("resnet18", 64, 64),
    Case("resnet18", 224, 16),
    Case("mobilenetv2_100", 64, 64),
    Case("mobilenetv2_100", 224, 16),
    Case("resnet50", 224, 8),
)
BY_FORM = (*CIFAR, Case("resnet_tiny_cifar", 32, 128))
OPTIMIZERS = {"sgd": Way("sgd"), "muon": Way("muon")}
FORMS = {
    "plain": Way(channels_last=False, bf16=True),
    "channels last": Way(bf16=True),
    "compiled": Way(channels_last=False, compiled=True, bf16=True),
    "compiled, channels last": Way(compiled=True, bf16=True),
}
FLOAT32_FORMS = {
    "plain": Way(channels_last=False),
    "channels last": Way(),
    "compiled": Way(channels_last=False, compiled=True),
    "compiled, channels last": Way(compiled=True),
    "channels last, bf16": Way(bf16=True),
}


def _step(case: Case, way: Way) -> Run:
    torch.manual_seed(0)
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    model = create_model(case.network, num_classes=CLASSES).train().to(memory_format=layout)
    images = torch.randn(case.batch, 3, case.size, case.size).to(memory_format=layout)
    targets = torch.randint(0, CLASSES, (case.batch,))
    made = make_optimizer([model], Recipe(optimizer=way.optimizer))
    return training_step(model, images, targets, compiled=way.compiled, optimizer=made, bf16=way.bf16)


def _cells(cases: tuple[Case, ...], ways: Mapping[str, Way], rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds in which each way makes one step, after one that prepares and one that warms up."""
    torch.compiler.config.force_disable_caches = True  # the first step compiles anew
    cells = []
    for case in cases:
        torch.compiler.reset()
        steps = {name: outside_inference(_step(case, way)) for name, way in ways.items()}
        first = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step(torch.empty(case.batch))
            first[name] = time.perf_counter() - start
        found = latency(steps, torch.empty(case.batch), runs=rounds, warmup=1)
        medians = {name: found[name].median for name in ways}
        about = {"network": case.network, "size": case.size, "batch": case.batch}
        cells.append({**about, "seconds": medians, "first_step_seconds": first})
    return cells


def measure(rounds: int) -> dict[str, Any]:
    """Both tables."""
    return {
        "seed": 0,
        "rounds": rounds,
        "optimizers": _cells(BY_OPTIMIZER, OPTIMIZERS, rounds),
        "forms": _cells(BY_FORM, FORMS, rounds),
        "environment": environment(),
    }


def measure_float32(rounds: int) -> dict[str, Any]:
    """The table of forms in float32."""
    cells = _cells(BY_FORM, FLOAT32_FORMS, rounds)
    return {"seed": 0, "rounds": rounds, "forms": cells, "environment": environment()}


def section() -> str:
    """The tables of the page; nothing if nothing was measured."""
    parts = []
    if PATH.is_file():
        content = read_json(PATH)
        optimizers = []
        for cell in content["optimizers"]:
            sgd, muon = (1e3 * cell["seconds"][name] for name in OPTIMIZERS)
            optimizers.append((*_about(cell), f"{sgd:.0f}", f"{muon:.0f}", f"{muon / sgd:.2f}"))
        parts += [
            f"**A step of training** (forward, backward, optimiser), float32, channels last, {_measured(content)}",
            table((*HEADS, "ms of a step by SGD", "by Muon", "times as long"), optimizers),
            *_forms(content, FORMS, "bf16"),
        ]
    if FLOAT32_PATH.is_file():
        parts += _forms(read_json(FLOAT32_PATH), FLOAT32_FORMS, "float32 where nothing else is said")
    return "\n\n".join(parts)


def _forms(content: Mapping[str, Any], ways: Mapping[str, Way], precision: str) -> list[str]:
    """Plain steps beside compiled ones, in words and as a table; the ratio leaves out what has another precision."""
    usual = next(iter(ways.values())).bf16
    rows = []
    for cell in content["forms"]:
        timed = [(cell["seconds"][name], name) for name, way in ways.items() if way.bf16 == usual]
        plain = min(found for found in timed if not ways[found[1]].compiled)
        compiled = min(found for found in timed if ways[found[1]].compiled)
        times = [f"{1e3 * cell['seconds'][name]:.0f}" for name in ways]
        compiling = cell["first_step_seconds"][compiled[1]]
        rows.append((*_about(cell), *times, f"{plain[0] / compiled[0]:.2f}", f"{compiling:.0f}"))
    return [
        f"**A step of training by Muon**, {precision}, in ms, {_measured(content)} Compiled is `--compile`.",
        table((*HEADS, *ways, "compiled is faster by", "its first step, s"), rows),
    ]


def _measured(content: Mapping[str, Any]) -> str:
    return f"medians of {content['rounds']} rounds side by side. {hardware(dict(content))}."


def _about(cell: Mapping[str, Any]) -> tuple[str, str]:
    return f"`{cell['network']}`", f"{cell['batch']} of {cell['size']} x {cell['size']}"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    parser.add_argument("--float32", action="store_true", help="only plain beside compiled, in float32")
    args = parser.parse_args()
    path = FLOAT32_PATH if args.float32 else PATH
    try:
        if args.rounds < 1:
            raise UserError("--rounds must be 1 or more")
        write_json(path, measure_float32(args.rounds) if args.float32 else measure(args.rounds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
