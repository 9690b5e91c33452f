"""Which stages a budget condenses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError, UserTypeError
from .data import Cost, Stage


@dataclass(frozen=True)
class Budget:
    """What the condensed network may have at most, None for no limit; speedup: time before / time after."""

    max_params: int | None = None
    max_macs: int | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_params", "max_macs"):
            most: Any = getattr(self, name)
            if most is not None and (type(most) is not int or most < 1):
                kind = UserError if isinstance(most, (int, float)) else UserTypeError
                raise kind(f"plan: {name}={most!r} must be a whole number >= 1, or None for no limit")
        value: Any = self.speedup
        if value is not None:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (math.isfinite(value) and value >= 1):
                kind = UserError if number else UserTypeError
                raise kind(
                    f"plan: speedup={value!r} must be a finite number >= 1, such as 2 for half the time"
                )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return self == Budget()

    def missing(self, cost: Cost, before: Cost) -> dict[str, float]:
        """For every limit that `cost` does not meet, by how much: parameters, multiply-adds, seconds."""
        over: dict[str, float] = {}
        if self.max_params is not None and cost.params > self.max_params:
            over["params"] = cost.params - self.max_params
        if self.max_macs is not None and cost.macs > self.max_macs:
            over["macs"] = cost.macs - self.max_macs
        if self.speedup is not None and cost.seconds is not None and before.seconds is not None:
            allowed = before.seconds / self.speedup
            if cost.seconds > allowed:
                over["seconds"] = cost.seconds - allowed
        return over


def total(before: Cost, stages: Sequence[Stage]) -> Cost:
    """The cost of the network with these stages condensed: the sum of what each saves."""
    saved = [saved_by(s) for s in stages]
    seconds = before.seconds
    if seconds is not None:
        seconds = max(0.0, seconds - sum(s.seconds or 0.0 for s in saved))
    return Cost(
        before.params - sum(s.params for s in saved), before.macs - sum(s.macs for s in saved), seconds
    )


def choose(stages: Sequence[Stage], before: Cost, budget: Budget) -> tuple[Stage, ...]:
    """The stages, of which as few are condensed as the budget needs.

    They are taken by what they save towards the limits that are not met yet: time and multiply-adds per
    removed parameter, since every parameter was learned; parameters per removed block. At the end those that
    turned out not to be needed are given back. Raises `UserError` with the nearest that can be reached.
    """
    if budget.is_empty:
        return tuple(replace(s, condense=True) for s in stages)
    chosen: list[Stage] = []
    while over := budget.missing(total(before, chosen), before):
        left = [s for s in stages if s not in chosen and _gain(over)(s) > 0]
        if not left:
            raise _unreachable(stages, before, budget)
        chosen.append(max(left, key=_gain(over)))
    for stage in sorted(chosen, key=lambda s: -saved_by(s).params):
        rest = [s for s in chosen if s is not stage]
        if not budget.missing(total(before, rest), before):
            chosen = rest
    return tuple(replace(s, condense=s in chosen) for s in stages)


def saved_by(stage: Stage) -> Cost:
    """What the stage saves when it is condensed."""
    a, b = stage.before or Cost(0, 0), stage.after or Cost(0, 0)
    seconds = None if a.seconds is None or b.seconds is None else a.seconds - b.seconds
    return Cost(a.params - b.params, a.macs - b.macs, seconds)


def _gain(over: dict[str, float]) -> Callable[[Stage], float]:
    def gain(stage: Stage) -> float:
        saved = saved_by(stage)
        helps = [min(1.0, (getattr(saved, key) or 0.0) / missing) for key, missing in over.items()]
        towards = sum(h for h in helps if h > 0)
        if set(over) == {"params"}:
            return towards / len(stage.remove)
        return towards / max(1, saved.params)

    return gain


def _unreachable(stages: Sequence[Stage], before: Cost, budget: Budget) -> UserError:
    words = []
    for key, name in (("params", "max_params"), ("macs", "max_macs"), ("seconds", "speedup")):
        asked = getattr(budget, name)
        if asked is None:
            continue
        helpful = [s for s in stages if (getattr(saved_by(s), key) or 0) > 0]
        best = total(before, helpful)
        if not budget.missing(best, before).keys() & {key}:
            continue
        if key == "seconds":
            reached = (before.seconds or 0.0) / max(best.seconds or 0.0, 1e-12)
            words.append(f"speedup={asked:g}: the nearest is {reached:.3g}")
        else:
            words.append(f"{name}={asked:,}: the nearest is {getattr(best, key):,}")
    joined = "; ".join(words) or "its limits cannot be met together"
    return UserError(
        f"no plan meets the budget {joined}, with every repetition condensed that saves; choose a cheaper "
        "block (block='none' saves most), a wider budget, or a smaller network"
    )
