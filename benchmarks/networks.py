"""Networks with Global layers against those that they condense: inference, each side at its own best."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.measure import count
from globalcnn.models import create_model, list_models, model_info, shown_name
from globalcnn.nn.implicit import ImplicitLayer
from globalcnn.optimize import optimize_for_inference
from globalcnn.optimize.form import by_itself

from .layer import forward
from .results import Cell, Comparison, Progress, Settings, Side
from .rounds import Form, NotHere, Run, race, reason

CIFAR = (
    ("resnet_global_cifar", "resnet32_cifar"),
    ("densenet_global_cifar", "densenet_cifar"),
    ("wide_resnet_global_cifar", "wide_resnet_cifar"),
)
IMAGENET = (("mobilenetv2_global", "mobilenetv2_100"), ("efficientnet_b0_global", "efficientnet_b0"))
SOLVERS = (
    ("global_mnist", "neural_ode_mnist"),
    ("global_mnist", "resnet_mnist"),
    ("resnet_global_cifar", "mdeq_cifar"),
)
TINY = (("resnet_global_tiny_cifar", "resnet_tiny_cifar"),)
NOTE = (
    "Each side at its own best of: eager, channels-last, compiled (torch.compile), optimised "
    "(optimize_for_inference). Untrained weights."
)
NOT_QUICK = "left out of a quick run"


def compare_networks(settings: Settings, progress: Progress) -> Comparison:
    """The table `networks`."""
    pairs, batches = (TINY, (1, 2)) if settings.quick else (CIFAR, (1, 64, 512))
    cells = _cells(pairs, batches, (32, 32), settings, progress)
    return Comparison("networks", "Networks for CIFAR, inference", cells, (NOTE,))


def compare_imagenet(settings: Settings, progress: Progress) -> Comparison:
    """The table `imagenet`."""
    pairs, batches, side = (IMAGENET[:1], (1,), 32) if settings.quick else (IMAGENET, (1, 16), 224)
    cells = _cells(pairs, batches, (side, side), settings, progress)
    return Comparison("imagenet", "Networks for ImageNet, inference", cells, (NOTE,))


def compare_solvers(settings: Settings, progress: Progress) -> Comparison:
    """The table `solvers`."""
    batches = (1,) if settings.quick else (1, 64)
    cells = _cells(SOLVERS, batches, None, settings, progress)
    note = (
        "A network that solves evaluates its function as often as its weights and images ask for; untrained "
        "ones may need fewer or more evaluations than trained ones."
    )
    return Comparison("solvers", "Against networks that solve, inference", cells, (NOTE, note))


def _cells(
    pairs: tuple[tuple[str, str], ...],
    batches: tuple[int, ...],
    image: tuple[int, int] | None,
    settings: Settings,
    progress: Progress,
) -> tuple[Cell, ...]:
    cells = []
    for ours, theirs in pairs:
        for batch in batches:
            name = f"{shown_name(ours)} / {shown_name(theirs)}, batch {batch}"
            progress(name)
            try:
                cells.append(_cell(name, ours, theirs, batch, image, settings))
            except Exception as error:  # a cell that fails is recorded
                cells.append(
                    Cell(
                        name,
                        Side(shown_name(ours)),
                        Side(shown_name(theirs)),
                        images=batch,
                        failure=reason(error),
                    )
                )
            finally:
                torch._dynamo.reset()  # what was compiled for one cell is of no use to the next
    return tuple(cells)


def _cell(
    name: str, ours: str, theirs: str, batch: int, image: tuple[int, int] | None, settings: Settings
) -> Cell:
    facts: dict[str, Any] = {"batch": batch}
    sides = []
    for key, network in (("ours", ours), ("theirs", theirs)):
        model = seeded(network)
        size = input_size(network, model, image)
        x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
        counts = count(model, size)
        facts[f"{key}_macs"], facts[f"{key}_params"] = counts.macs, counts.params
        with torch.inference_mode():
            model(x[:1])
        solves = [m.evaluations for m in model.modules() if isinstance(m, ImplicitLayer)]
        if solves:
            facts[f"{key}_evaluations"] = max(solves)
        sides.append((shown_name(network), inference_forms(network, model, x, settings)))
    facts["input"] = list(size)
    facts["macs_ratio"] = facts["ours_macs"] / facts["theirs_macs"]
    return race(name, sides[0], sides[1], settings, images=batch, facts=facts)


def seeded(network: str) -> nn.Module:
    """The network in eval mode, its weights from seed 0."""
    torch.manual_seed(0)
    return create_model(network).eval()


def input_size(network: str, model: nn.Module, image: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, H, W); the published size unless `image` is given."""
    config: Any = getattr(model, "pretrained_cfg", {})
    size = model_info(network).input_size if network in list_models() else config["input_size"]
    return (size[0], *image) if image is not None else size


def inference_forms(network: str, model: nn.Module, x: Tensor, settings: Settings) -> list[Form]:
    """The forms that a network is run in."""
    last = torch.channels_last

    def eager() -> Run:
        return forward(copy.deepcopy(model), x)

    def channels_last() -> Run:
        return forward(copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last))

    def compiled() -> Run:
        check_compiles(network, settings)
        call: Any = torch.compile(by_itself(copy.deepcopy(model)), dynamic=False)
        return forward(call, x)

    def optimised() -> Run:
        return _Optimised(model, x, settings)

    ways = {
        "eager": eager,
        "channels-last": channels_last,
        "compiled": compiled,
        "optimised": optimised,
    }
    return [Form(name, prepare) for name, prepare in ways.items()]


class _Optimised:
    """Runs the network in the form that the search found, and says which."""

    def __init__(self, model: nn.Module, x: Tensor, settings: Settings) -> None:
        found = optimize_for_inference(model, x, seconds=settings.seconds, compile=not settings.quick)
        self.run = forward(found, x)
        self.about = "" if found.report is None else found.report.chosen

    def __call__(self) -> Any:
        return self.run()


def check_compiles(network: str, settings: Settings) -> None:
    """Raises the reason where the network is not to be compiled."""
    if settings.quick:
        raise NotHere(NOT_QUICK)
    reasons = dict(model_info(network).cannot) if network in list_models() else {}
    if "compile" in reasons:
        raise NotHere(f"cannot be compiled: {reasons['compile']}")
