"""The arms: ways to a faster network, each with the candidates among which the measured latency chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, final

from torch import nn

from globalcnn import condense, create_model
from globalcnn.errors import UserError, unknown_name
from globalcnn.models.resnet import ResNet

from .original import Original
from .pruning import pruned

PARTS = 32  # channels are taken in 32nds
ROUND_TO = 8  # channels: what the widest vectors here hold is a multiple of it


@dataclass(frozen=True)
class Candidate:
    """A network that an arm could take.

    settings: plain values that tell it from the others; build: makes it, new weights from torch's generator;
    plan: of a condensed one.
    """

    settings: Mapping[str, Any]
    build: Callable[[], nn.Module]
    plan: condense.Plan | None = None


@dataclass(frozen=True)
class Arm(ABC):
    """A way to a faster network. question: what it is, in a few words."""

    name: str
    question: str

    @property
    def meets_target(self) -> bool:
        """Whether it is to be as fast as the target; else its one candidate is taken as it is."""
        return True

    @property
    def from_scratch(self) -> bool:
        """Whether it starts with fresh weights and learns without the original."""
        return False

    @abstractmethod
    def candidates(self, original: Original) -> dict[str, Candidate]:
        """Its candidates by name."""


@final
@dataclass(frozen=True)
class Condensed(Arm):
    """Repeated blocks give way to one block: `globalcnn.condense`."""

    block: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self, original: Original) -> dict[str, Candidate]:
        plans = dict(self._plans(original))
        names = list(dict.fromkeys(s.name for plan in plans.values() for s in plan.stages))
        most = {name: max(k for k, p in plans.items() if _stage(p, name)) + 1 for name in names}
        found = {}
        for kept in product(*(range(1, most[name] + 1) for name in names)):
            if not is_balanced(kept, tuple(most.values())):
                continue
            keep = {n: k for n, k in zip(names, kept, strict=True) if k < most[n]}
            plan = _joined(plans, keep)
            build = partial(condense.apply, original.model, plan)
            found[" ".join(f"{n}:{k}" for n, k in keep.items())] = Candidate({"keep": keep}, build, plan)
        return found

    def _plans(self, original: Original) -> Iterator[tuple[int, condense.Plan]]:
        """The plan for each number of kept blocks, as long as there are repetitions left to condense."""
        keep = 1
        while True:
            try:
                yield (
                    keep,
                    condense.plan(
                        original.model,
                        original.example(1),
                        block=self.block,
                        settings=self.settings,
                        keep=keep,
                        seconds=None,
                    ),
                )
            except UserError:
                if keep == 1:
                    raise
                return
            keep += 1


def _stage(plan: condense.Plan, name: str) -> condense.Stage | None:
    return next((s for s in plan.stages if s.name == name), None)


def _joined(plans: Mapping[int, condense.Plan], keep: Mapping[str, int]) -> condense.Plan:
    """The plan whose stages keep so many blocks each; those that are not named stay whole."""
    stages = []
    for stage in plans[1].stages:
        chosen = _stage(plans[keep.get(stage.name, 1)], stage.name) or stage
        stages.append(replace(chosen, condense=stage.name in keep))
    return replace(plans[1], stages=tuple(stages), after=None)


def is_balanced(kept: tuple[int, ...], most: tuple[int, ...]) -> bool:
    """Whether the stages keep about equally many blocks, or are either whole or as short as can be.

    kept: blocks that each stage keeps; most: of a whole one. Nothing condensed is no candidate.

    >>> is_balanced((2, 3, 2), (5, 5, 5)), is_balanced((1, 5, 5), (5, 5, 5)), is_balanced((2, 4, 4), (5, 5, 5))
    (True, True, False)
    """
    if kept == most:
        return False
    ends = all(k in (1, n) for k, n in zip(kept, most, strict=True))
    return ends or max(kept) - min(kept) <= 1


@final
@dataclass(frozen=True)
class Pruned(Arm):
    """Channels go: Torch-Pruning. ranked_together: see `pruned`."""

    ranked_together: bool

    def candidates(self, original: Original) -> dict[str, Candidate]:
        found: dict[str, Candidate] = {}
        shapes = set()
        for round_to in (None, ROUND_TO):
            for part in range(1, PARTS):
                ratio = part / PARTS
                build = partial(
                    pruned,
                    original.model,
                    original.example(1),
                    ratio,
                    round_to=round_to,
                    ranked_together=self.ranked_together,
                )
                shape = tuple(p.shape for p in build().parameters())
                if shape not in shapes:
                    shapes.add(shape)
                    settings = {"ratio": ratio, "round_to": round_to}
                    multiple = f", multiples of {round_to}" if round_to else ""
                    found[f"{part}/{PARTS} of the channels{multiple}"] = Candidate(settings, build)
        return found


@final
@dataclass(frozen=True)
class Thinner(Arm):
    """The same architecture with fewer channels, from scratch."""

    @property
    def from_scratch(self) -> bool:
        return True

    def candidates(self, original: Original) -> dict[str, Candidate]:
        net = original.model
        if not isinstance(net, ResNet) or any(not name.startswith("layer") for name in net.body):
            raise UserError(f"the arm {self.name!r} is for residual networks of this library alone")
        depths = tuple(len(list(net.get_submodule(name).children())) for name in net.body)
        full = [info["num_chs"] for info in net.feature_info]
        found: dict[str, Candidate] = {}
        for part in range(PARTS - 1, 0, -1):
            widths = tuple(max(1, round(w * part / PARTS)) for w in full)
            build = partial(
                ResNet,
                depths,
                widths,
                num_classes=original.card.num_classes,
                in_chans=original.card.in_chans,
            )
            found.setdefault("-".join(map(str, widths)), Candidate({"widths": list(widths)}, build))
        return found


@final
@dataclass(frozen=True)
class Named(Arm):
    """A network of this library, from scratch, as fast as it is."""

    network: str

    @property
    def meets_target(self) -> bool:
        return False

    @property
    def from_scratch(self) -> bool:
        return True

    def candidates(self, original: Original) -> dict[str, Candidate]:
        build = partial(
            create_model,
            self.network,
            num_classes=original.card.num_classes,
            in_chans=original.card.in_chans,
        )
        return {self.network: Candidate({"network": self.network}, build)}


REFERENCE = "condensed-depthwise"  # arms from scratch are trained for as long as this one took

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Condensed(
            REFERENCE,
            "condensed, a residual depthwise 7x7 for the removed blocks",
            "depthwise",
            {"kernel_size": 7},
        ),
        Pruned("pruned", "Torch-Pruning, the same share of every group of channels", False),
        Condensed("removed", "blocks removed, nothing in their place", "none"),
        Condensed("condensed-global", "condensed, a Global layer for the removed blocks", "global"),
        Thinner("thinner", "fewer channels, trained from scratch"),
        Named("resnet-global", "ResNet-Global, trained from scratch", "resnet_global_cifar"),
        Pruned("pruned-ranked", "Torch-Pruning, all groups of channels ranked together", True),
    )
}


def find_arm(name: str) -> Arm:
    """The arm of that name, or an error with near ones."""
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]
