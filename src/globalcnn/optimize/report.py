"""The result of a search for the fastest variant, ready to print or to write as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One variant that was tried against the best one so far.

    before, seconds: median seconds per batch of the best so far and of this variant, measured in alternating
    rounds (None if not measured); deviation: largest difference from the original's output, as a share of
    the largest value; outcome: "chosen", or why not.
    """

    name: str
    outcome: str
    before: float | None = None
    seconds: float | None = None
    deviation: float | None = None

    @property
    def chosen(self) -> bool:
        """Whether this variant became the best so far."""
        return self.outcome == "chosen"


@dataclass(frozen=True)
class OptimizationReport:
    """What `optimize_for_inference` tried and chose; `print` shows it as a table.

    chosen: name of the variant; before, seconds: median seconds per batch of the original and of the
    optimised model, measured in alternating rounds at the end; tolerance: the allowed deviation; setting:
    batch, dtype, device and threads of the measurement; notes: further remarks; spent: seconds of the whole
    search.
    """

    chosen: str
    before: float
    seconds: float
    deviation: float
    tolerance: float
    setting: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    spent: float = 0.0

    @property
    def speedup(self) -> float:
        """How many times as fast as the original model."""
        return self.before / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        head = ("tried", "before", "with it", "deviation", "outcome")
        cells = [
            (r.name, _time(r.before), _time(r.seconds), _number(r.deviation), r.outcome) for r in self.rows
        ]
        widths = [max(len(row[i]) for row in (head, *cells)) for i in range(4)]
        lines = [f"measured on {self.setting}; a deviation of {self.tolerance:.0e} is allowed", ""]
        for name, *figures, outcome in (head, *cells):
            middle = "  ".join(f.rjust(w) for f, w in zip(figures, widths[1:], strict=True))
            lines.append(f"{name.ljust(widths[0])}  {middle}  {outcome}")
        lines += [
            "",
            f"chosen: {self.chosen}",
            f"{_time(self.before)} -> {_time(self.seconds)} per batch, {self.speedup:.2f} times as fast; "
            f"deviation {_number(self.deviation)}; searched for {self.spent:.0f} s",
            *self.notes,
        ]
        return "\n".join(lines)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
