"""The latency of every arm, side by side in one run: globalcnn's fastest variant, ONNX Runtime, OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from globalcnn.files import write_json

from .. import machine
from ..deployed_engines import COMPETING, latencies_of
from .arms import ARMS, find_arm
from .collect import FOLDER
from .runs import build

BATCHES = (1, 64)


def measure(
    network: str,
    *,
    arms: Sequence[str],
    num_classes: int,
    size: tuple[int, int, int],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Path:
    """Time the arms of a network and write results/ablation/latency-NETWORK.json; returns its path.

    Arms that differ only in how they train are timed once. globalcnn's search does not compile here: a minute
    for each arm.
    """
    before = machine.load_averages()
    timed = {find_arm(name).timed_as or name for name in arms}
    models = {
        name: build(network, ARMS[name], num_classes=num_classes, seed=0).eval() for name in sorted(timed)
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in arms}
    failures: dict[str, str] = {}
    for batch in BATCHES:
        x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
        times = latencies_of(models, x, rounds=rounds, seconds=seconds, compile=False, progress=say)
        for name in arms:
            engines = times[find_arm(name).timed_as or name]
            found[name][str(batch)] = {engine: engines[engine]["seconds"] for engine in COMPETING}
            failures |= {
                f"{name}, {engine}, batch {batch}": t["failure"]
                for engine, t in engines.items()
                if t["failure"]
            }
    path = FOLDER / f"latency-{network}.json"
    facts = {"network": network, "engines": list(COMPETING), "rounds": rounds, "seconds": seconds}
    write_json(
        path,
        {**facts, "load_before": before, **machine.facts(seed=0), "failures": failures, "arms": found},
    )
    return path
