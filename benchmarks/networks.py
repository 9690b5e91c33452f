"""Networks against networks at inference, each side at its own fastest variant."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.cli.networks import ImageSize, Named, build_named
from globalcnn.measure import count
from globalcnn.models import list_models, model_info, shown_name
from globalcnn.nn.implicit import ImplicitLayer
from globalcnn.optimize import optimize_for_inference
from globalcnn.optimize.engine import separately

from .layer import forward
from .results import Cell, Comparison, Progress, Settings, Side
from .rounds import NotHere, Run, Variant, reason, timed_in_rounds

Pair = tuple[str, str]
CIFAR: tuple[Pair, ...] = (
    ("resnet_global_cifar", "resnet32_cifar"),
    ("densenet_global_cifar", "densenet_cifar"),
    ("wide_resnet_global_cifar", "wide_resnet_cifar"),
)
IMAGENET: tuple[Pair, ...] = (
    ("mobilenetv2_global", "mobilenetv2_100"),
    ("efficientnet_b0_global", "efficientnet_b0"),
)
IMPLICIT: tuple[Pair, ...] = (
    ("global_mnist", "neural_ode_mnist"),
    ("global_mnist", "resnet_mnist"),
    ("resnet_global_cifar", "mdeq_cifar"),
)
TINY: tuple[Pair, ...] = (("resnet_global_tiny_cifar", "resnet_tiny_cifar"),)
NOTE = (
    "Each side at its own fastest variant: eager, channels-last, compiled (torch.compile), optimised "
    "(optimize_for_inference). Untrained weights."
)
NOT_QUICK = "left out of a quick run"


def compare_networks(settings: Settings, progress: Progress) -> Comparison:
    """The table `networks`."""
    pairs, batches = (TINY, (1, 2)) if settings.quick else (CIFAR, (1, 64, 512))
    cells = _cells(pairs, batches, settings, progress)
    return Comparison("networks", "Networks for CIFAR, inference", cells, (NOTE,))


def compare_imagenet(settings: Settings, progress: Progress) -> Comparison:
    """The table `imagenet`."""
    pairs, batches, side = (IMAGENET[:1], (1,), 32) if settings.quick else (IMAGENET, (1, 16), 224)
    cells = _cells(pairs, batches, settings, progress, image_size=side)
    return Comparison("imagenet", "Networks for ImageNet, inference", cells, (NOTE,))


def compare_implicit(settings: Settings, progress: Progress) -> Comparison:
    """The table `solvers`."""
    batches = (1,) if settings.quick else (1, 64)
    cells = _cells(IMPLICIT, batches, settings, progress)
    note = (
        "An implicit network evaluates its function as often as its weights and images ask for; untrained "
        "ones may need fewer or more evaluations than trained ones."
    )
    return Comparison("solvers", "Against implicit networks, inference", cells, (NOTE, note))


def compare_given(
    names: Sequence[str],
    settings: Settings,
    progress: Progress,
    *,
    batches: Sequence[int],
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: ImageSize = None,
) -> Comparison:
    """The table `models`: the first of `names` against each of the others."""
    pairs = [(names[0], other) for other in names[1:]]
    sized = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size}
    cells = _cells(pairs, batches, settings, progress, **sized)
    return Comparison("models", f"{shown_name(names[0])} against others, inference", cells, (NOTE,))


def _cells(
    pairs: Iterable[Pair], batches: Sequence[int], settings: Settings, progress: Progress, **sized: Any
) -> tuple[Cell, ...]:
    cells = []
    for ours, theirs in pairs:
        for batch in batches:
            shown = shown_name(ours), shown_name(theirs)
            name = f"{shown[0]} / {shown[1]}, batch {batch}"
            progress(name)
            try:
                networks = build_named(ours, **sized), build_named(theirs, **sized)
                cells.append(_cell(name, networks, batch, settings))
            except Exception as error:  # a cell that fails is recorded
                sides = Side(shown[0]), Side(shown[1])
                cells.append(Cell(name, *sides, images=batch, failure=reason(error)))
            finally:
                torch._dynamo.reset()  # what was compiled for one cell is of no use to the next
    return tuple(cells)


def _cell(name: str, networks: tuple[Named, Named], batch: int, settings: Settings) -> Cell:
    facts: dict[str, Any] = {"batch": batch, "input": list(networks[0].input_size)}
    sides = []
    for key, network in zip(("ours", "theirs"), networks, strict=True):
        model = network.model.eval()
        x = torch.randn(batch, *network.input_size, generator=torch.Generator().manual_seed(0))
        counts = count(model, network.input_size)
        facts[f"{key}_macs"], facts[f"{key}_params"] = counts.macs, counts.params
        with torch.inference_mode():
            model(x[:1])
        evaluations = [m.evaluations for m in model.modules() if isinstance(m, ImplicitLayer)]
        if evaluations:
            facts[f"{key}_evaluations"] = max(evaluations)
        sides.append((network.shown, inference_variants(network, x, settings)))
    facts["macs_ratio"] = facts["ours_macs"] / facts["theirs_macs"]
    return timed_in_rounds(name, sides[0], sides[1], settings, images=batch, facts=facts)


def inference_variants(network: Named, x: Tensor, settings: Settings) -> list[Variant]:
    """The variants that a network, which is in eval mode, is run in on the batch `x`."""
    model, last = network.model, torch.channels_last

    def eager() -> Run:
        return forward(copy.deepcopy(model), x)

    def channels_last() -> Run:
        return forward(copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last))

    def compiled() -> Run:
        check_compiles(network, settings)
        call: Any = torch.compile(separately(copy.deepcopy(model)), dynamic=False)
        return forward(call, x)

    def optimised() -> Run:
        return _Optimised(model, x, settings)

    ways = {
        "eager": eager,
        "channels-last": channels_last,
        "compiled": compiled,
        "optimised": optimised,
    }
    return [Variant(way, prepare) for way, prepare in ways.items()]


class _Optimised:
    """Runs the network in the variant that the search found, and says which."""

    def __init__(self, model: nn.Module, x: Tensor, settings: Settings) -> None:
        found = optimize_for_inference(
            model, x, seconds=settings.seconds, compile=not settings.quick, engines=()
        )
        self.run = forward(found, x)
        self.about = "" if found.report is None else found.report.chosen

    def __call__(self) -> Any:
        return self.run()


def check_compiles(network: Named, settings: Settings) -> None:
    """Raises the reason where the network is not to be compiled."""
    if settings.quick:
        raise NotHere(NOT_QUICK)
    reasons = dict(model_info(network.name).cannot) if network.name in list_models() else {}
    if "compile" in reasons:
        raise NotHere(f"cannot be compiled: {reasons['compile']}")
