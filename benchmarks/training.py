"""One training step of ResNet-Global against one of ResNet-32."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalcnn.cli.networks import Named, build_named
from globalcnn.measure import count
from globalcnn.optimize.engine import separately

from .networks import check_compiles
from .results import Cell, Comparison, Progress, Settings, Side
from .rounds import Run, Variant, reason, timed_in_rounds

PAIR = ("resnet_global_cifar", "resnet32_cifar")
TINY = ("resnet_global_tiny_cifar", "resnet_tiny_cifar")
BATCH = 128


def compare_training(settings: Settings, progress: Progress) -> Comparison:
    """The table `training`."""
    pair, batch = (TINY, 4) if settings.quick else (PAIR, BATCH)
    name = f"{pair[0]} / {pair[1]}, batch {batch}"
    progress(name)
    try:
        cell = _cell(name, pair, batch, settings)
    except Exception as error:  # a cell that fails is recorded
        cell = Cell(name, Side(pair[0]), Side(pair[1]), images=batch, failure=reason(error))
    finally:
        torch._dynamo.reset()
    notes = (
        "A step is forward, loss, backward and an SGD step, on images in memory; each side at its fastest "
        "variant.",
    )
    return Comparison("training", "One training step, images 32 x 32", (cell,), notes)


def _cell(name: str, pair: tuple[str, str], batch: int, settings: Settings) -> Cell:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    sides, macs = [], []
    for network in pair:
        named = build_named(network)
        macs.append(count(named.model, (3, 32, 32)).macs)
        sides.append((network, _variants(named, x, y, settings)))
    facts = {"batch": batch, "ours_macs": macs[0], "theirs_macs": macs[1], "macs_ratio": macs[0] / macs[1]}
    return timed_in_rounds(name, sides[0], sides[1], settings, images=batch, facts=facts)


def _variants(network: Named, x: Tensor, y: Tensor, settings: Settings) -> list[Variant]:
    def preparing(fmt: torch.memory_format, compiled: bool) -> Any:
        def prepare() -> Run:
            if compiled:
                check_compiles(network, settings)
            own = copy.deepcopy(network.model).train().to(memory_format=fmt)
            return training_step(own, x.contiguous(memory_format=fmt), y, compiled=compiled)

        return prepare

    formats = {"eager": torch.contiguous_format, "channels-last": torch.channels_last}
    return [
        Variant("compiled" if both == "compiled, eager" else both, preparing(fmt, compiled))
        for compiled in (False, True)
        for words, fmt in formats.items()
        for both in [f"compiled, {words}" if compiled else words]
    ]


def training_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    compiled: bool,
    optimizer: torch.optim.Optimizer | None = None,
    bf16: bool = False,
) -> Run:
    """Forward, loss, backward, step of the optimiser; default SGD with momentum. bf16: mixed precision."""
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    call = torch.compile(separately(model), dynamic=False) if compiled else model

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(call(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run
