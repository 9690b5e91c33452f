"""A plan as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import Cost, Plan, Stage

COLUMNS = ("stage", "map", "goes", "comes", "params", "multiply-adds", "ms")


def as_text(plan: Plan) -> str:
    """The plan as lines: one per stage, totals, what stays and why."""
    cells = [list(COLUMNS), *rows(plan)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    example = "x".join(map(str, plan.example))
    return "\n".join([f"{plan.network}, example {example}", *lines, *remarks(plan)])


def rows(plan: Plan) -> list[list[str]]:
    """The cells of a table of the plan, under `COLUMNS`; the last row is the whole network."""
    found = [_row(stage) for stage in plan.stages]
    return [*found, ["network", "", "", "", *_changes(plan.before, plan.after)]]


def remarks(plan: Plan) -> list[str]:
    """Sentences below the table."""
    lines = []
    for stage in plan.stages:
        lines += [f"{stage.name}: {note}" for note in stage.notes]
        if stage.keep:
            lines.append(f"{stage.name}: {', '.join(stage.keep)} stays")
    if not plan.chosen:
        lines.append("no stage is condensed: the budget is met, or every stage is switched off")
    return lines + [f"untouched: {u.name}: {u.reason}" for u in plan.untouched]


def _row(stage: Stage) -> list[str]:
    blocks = [names[0] for names in stage.remove]
    goes = blocks[0] if len(blocks) == 1 else f"{len(blocks)}: {blocks[0]} to {blocks[-1]}"
    settings = ", ".join(f"{k}={v}" for k, v in stage.settings.items())
    comes = stage.block + (f" ({settings})" if settings else "")
    if stage.in_channels is not None:
        comes = f"1x1 convolution, {comes}"
    comes = comes if stage.condense else f"(stays; {comes})"
    return [stage.name, "x".join(map(str, stage.shape)), goes, comes, *_changes(stage.before, stage.after)]


def _changes(before: Cost | None, after: Cost | None) -> Sequence[str]:
    found = []
    for key in ("params", "macs", "seconds"):
        values = [None if c is None else getattr(c, key) for c in (before, after)]
        shown = ["?" if v is None else (f"{1e3 * v:.3g}" if key == "seconds" else f"{v:,}") for v in values]
        found.append(shown[0] if shown[0] == shown[1] else " -> ".join(shown))
    return found
