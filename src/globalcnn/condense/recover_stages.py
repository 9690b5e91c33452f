"""The stages of a plan in the repair: what each learns, how well it did, and which are condensed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

import torch
from torch import nn

from ..data import Loader
from ..graph import eval_mode
from ..train import StagePair, StagewiseMatching
from .budget import Budget, saved_by, total
from .data import Plan, Stage

REMOVALS: Final = ("none", "zeros")  # blocks that learn nothing
MOST_TRIED: Final = 12  # stages whose subsets are all tried
NORM_IMAGES: Final = 4096


def pair_of(stage: Stage) -> StagePair | None:
    """What the stage's new block learns: from the input of the first removed block to the output of the last.

    Where blocks are only removed, the last one before them that stays learns to do their work too. None if
    there is none, or if what it should give is the output of no module.
    """
    ends = tuple(names[-1] for names in stage.remove)
    if stage.block not in REMOVALS:
        first = stage.remove[0][0]
        return StagePair(first, first, ends if stage.added else ends[-1:])
    if not stage.keep or stage.added:
        return None
    return StagePair(stage.keep[-1], stage.keep[-1], ends[-1:])


def pairs_of(stages: Sequence[Stage]) -> dict[str, StagePair]:
    """The pair of each stage that has one, by the stage's name."""
    return {s.name: pair for s in stages if (pair := pair_of(s)) is not None}


def remaining_errors(
    goal: StagewiseMatching, student: nn.Module, loader: Loader, *, batches: int = 8
) -> dict[str, float]:
    """The normalised squared error of each pair in eval mode, by the name of its new module: the mean over
    some batches.
    """
    sums: dict[str, float] = {}
    seen = 0
    with eval_mode(student), torch.no_grad():
        for images, _ in loader:
            for name, error in goal.errors(student, images).items():
                sums[name] = sums.get(name, 0.0) + float(error) * len(images)
            seen += len(images)
            batches -= 1
            if not batches:
                break
    return {name: total / seen for name, total in sums.items()}


def chosen_by_error(plan: Plan, errors: Mapping[str, float], budget: Budget) -> Plan:
    """The plan with those stages condensed that meet the budget with the smallest sum of errors.

    errors: by the name of the stage; a stage without one is as bad as a constant (1). With more than a dozen
    stages they are taken by error per second saved instead. `plan` holds what each saves, and meets the
    budget with all its stages that save time.
    """
    able = [s for s in plan.stages if (saved_by(s).seconds or 0.0) > 0]

    def met(stages: Sequence[Stage]) -> bool:
        return not budget.missing(total(plan.before, stages), plan.before)

    def error(stages: Sequence[Stage]) -> float:
        return sum(errors.get(s.name, 1.0) for s in stages)

    if len(able) <= MOST_TRIED:
        every = [c for n in range(1, len(able) + 1) for c in combinations(able, n) if met(c)]
        best = min(every, key=error, default=tuple(plan.chosen))
    else:
        order = sorted(able, key=lambda s: errors.get(s.name, 1.0) / (saved_by(s).seconds or 1.0))
        needed = next((n for n in range(1, len(order) + 1) if met(order[:n])), None)
        best = tuple(plan.chosen) if needed is None else tuple(order[:needed])
    names = {s.name for s in best}
    stages = tuple(replace(s, condense=s.name in names) for s in plan.stages)
    return replace(plan, stages=stages, after=total(plan.before, best))


@torch.no_grad()
def renew_norms(model: nn.Module, loader: Loader, *, images: int = NORM_IMAGES) -> int:
    """Estimate the running means and variances of all BatchNorms anew, over about so many images.

    Each becomes the plain mean over the batches, with dropout and stochastic depth off. Returns how many
    norms there are. Frozen ones (of other classes, or without running statistics) stay.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, kinds) and m.track_running_stats]
    if not norms:
        return 0
    flags = {m: m.training for m in model.modules()}
    momenta = [norm.momentum for norm in norms]
    try:
        model.train()
        for module in model.modules():
            if "Drop" in type(module).__name__ or type(module).__name__ == "StochasticDepth":
                module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        seen = 0
        for batch, _ in loader:
            model(batch)
            seen += len(batch)
            if seen >= images:
                break
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, flag in flags.items():
            module.training = flag
    return len(norms)
