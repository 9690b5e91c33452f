"""Networks against their baselines in every engine: globalcnn's own variants, ONNX Runtime (also with
globalcnn's kernels for the Global layers), OpenVINO.

Each engine computes in float32 with the threads that it takes by default; both networks are timed in the same
rounds, one engine after the other. The fastest engine of each side counts. `chosen` is what
`optimize_for_inference` returns, engines included: it is shown beside them, to see that it is never slower.
"""

from __future__ import annotations

from typing import Any

import torch

from globalcnn.cli.networks import Named, build_named
from globalcnn.engines import RUNTIMES
from globalcnn.measure import Latency, count

from .deployed_engines import ENGINES, latencies_of
from .networks import TINY, Pair
from .results import Cell, Comparison, Progress, Settings, Side, Timed
from .rounds import reason

COMPILED = 512  # images of a batch from which on torch.compile is tried: it takes minutes for deep networks
Situation = tuple[Pair, tuple[int, ...], int | None]  # pair, batches, side of the images
SITUATIONS: tuple[Situation, ...] = (
    (("resnet_global_cifar", "resnet32_cifar"), (1, 64, 512), None),
    (("resnet_depthwise_cifar", "resnet32_cifar"), (1, 64, 512), None),
    (("resnet_global_tiny_cifar", "resnet_tiny_cifar"), (1, 64), None),
    (("wide_resnet_global_tiny_cifar", "wide_resnet_tiny_cifar"), (1, 64), None),
    (("global_mnist", "resnet_mnist"), (1, 64), None),
    (("densenet_global_cifar", "densenet_cifar"), (1, 64), None),
    (("mobilenetv2_global", "mobilenetv2_100"), (1,), 224),
    (("efficientnet_b0_global", "efficientnet_b0"), (1,), 224),
)


def compare_engines(settings: Settings, progress: Progress) -> Comparison:
    """The table `engines`."""
    situations: tuple[Situation, ...] = tuple((pair, (2,), 16) for pair in TINY)
    situations = situations if settings.quick else SITUATIONS
    groups = [(pair, batch, side) for pair, batches, side in situations for batch in batches]
    cells = tuple(_cell(*group, settings, progress) for group in groups)
    versions = ", ".join(r.version for r in RUNTIMES.values() if r.installed) or "no engines installed"
    notes = (
        f"{versions}, torch {torch.__version__}; float32, threads as each takes by default, torch.compile "
        f"tried from batches of {COMPILED} on, untrained weights.",
        "chosen: optimize_for_inference with all engines; it does not count as an engine of its own.",
    )
    return Comparison("engines", "Networks in every engine, inference", cells, notes)


def _cell(pair: Pair, batch: int, side: int | None, settings: Settings, progress: Progress) -> Cell:
    name = f"{pair[0]} / {pair[1]}, batch {batch}"
    progress(name)
    try:
        networks = [build_named(word, image_size=side) for word in pair]
        x = torch.randn(batch, *networks[0].input_size, generator=torch.Generator().manual_seed(0))
        found = latencies_of(
            {n.shown: n.model.eval() for n in networks},
            x,
            engines=tuple(ENGINES),
            rounds=settings.rounds,
            seconds=settings.seconds,
            compile=batch >= COMPILED,
        )
        ours, theirs = (Side(n.shown, _timed(found[n.shown], batch)) for n in networks)
        return Cell(name, ours, theirs, images=batch, facts=_facts(networks, batch))
    except Exception as error:  # a cell that fails is recorded
        return Cell(name, Side(pair[0]), Side(pair[1]), images=batch, failure=reason(error))
    finally:
        torch._dynamo.reset()


def _timed(found: dict[str, dict[str, Any]], batch: int) -> tuple[Timed, ...]:
    return tuple(
        Timed(
            engine,
            None
            if t["seconds"] is None
            else Latency(t["seconds"], t["lower"], t["upper"], runs=t["rounds"], batch_size=batch),
            t["failure"],
            t.get("about", "") if engine in ("globalcnn", "chosen") else "",
            competes=engine != "chosen",
        )
        for engine, t in found.items()
    )


def _facts(networks: list[Named], batch: int) -> dict[str, Any]:
    ours, theirs = (count(n.model, n.input_size) for n in networks)
    return {
        "batch": batch,
        "input": list(networks[0].input_size),
        "ours_macs": ours.macs,
        "theirs_macs": theirs.macs,
        "ours_params": ours.params,
        "theirs_params": theirs.params,
        "macs_ratio": ours.macs / theirs.macs,
    }
