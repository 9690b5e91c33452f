"""What a step of Muon costs beside one of SGD: forward, backward and optimiser, in rounds side by side.

    python -m benchmarks.optimizer_cost --rounds 5        on an otherwise idle machine, a few minutes

Writes results/per-hour/optimizer-cost.json; `python -m benchmarks.per_hour --collect` shows it in docs/accuracy-per-hour.md.
"""

from __future__ import annotations

import argparse
import sys
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

PATH = RESULTS / "per-hour" / "optimizer-cost.json"
CASES = (  # network, side of the images, images of a batch
    ("resnet_global_tiny_cifar", 32, 128),
    ("resnet_global_cifar", 32, 128),
    ("resnet32_cifar", 32, 128),
    ("resnet18", 64, 64),
    ("resnet18", 224, 16),
    ("mobilenetv2_100", 64, 64),
    ("mobilenetv2_100", 224, 16),
    ("resnet50", 224, 8),
)
OPTIMIZERS = ("sgd", "muon")
CLASSES = 100


def _step(network: str, size: int, batch: int, optimizer: str) -> Run:
    """A training step of the network by the optimiser."""
    torch.manual_seed(0)
    model = create_model(network, num_classes=CLASSES).train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    targets = torch.randint(0, CLASSES, (batch,))
    made = make_optimizer([model], Recipe(optimizer=optimizer))
    return training_step(model, images, targets, compiled=False, optimizer=made)


def measure(rounds: int) -> dict[str, Any]:
    """Medians over rounds in which each optimiser makes one step, after one round that prepares."""
    cells = []
    for network, size, batch in CASES:
        steps = {name: outside_inference(_step(network, size, batch, name)) for name in OPTIMIZERS}
        found = latency(steps, torch.empty(batch), runs=rounds, warmup=1)
        medians = {name: found[name].median for name in OPTIMIZERS}
        cells.append({"network": network, "size": size, "batch": batch, "seconds": medians})
    return {"seed": 0, "rounds": rounds, "cells": cells, "environment": environment()}


def section() -> str:
    """The table of the page; nothing if nothing was measured."""
    if not PATH.is_file():
        return ""
    content = read_json(PATH)
    rows = []
    for cell in content["cells"]:
        sgd, muon = (1e3 * cell["seconds"][name] for name in OPTIMIZERS)
        images = f"{cell['batch']} of {cell['size']} x {cell['size']}"
        rows.append((f"`{cell['network']}`", images, f"{sgd:.0f}", f"{muon:.0f}", f"{muon / sgd:.2f}"))
    heads = ("network", "images", "ms of a step by SGD", "by Muon", "times as long")
    return (
        f"**A step of training** (forward, backward, optimiser), float32, medians of {content['rounds']} rounds side by side. "
        f"{hardware(content)}.\n\n{table(heads, rows)}"
    )


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizer_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    args = parser.parse_args()
    try:
        if args.rounds < 1:
            raise UserError("--rounds must be 1 or more")
        write_json(PATH, measure(args.rounds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
