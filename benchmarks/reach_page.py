"""Writes the tables of docs/reach.md from results/reach/.

python -m benchmarks.reach_page
"""

from __future__ import annotations

from typing import Any

from .pages import ROOT, hardware, put, table
from .reach import DATA, read_runs

PAGE = ROOT / "docs" / "reach.md"
START, END = "<!-- tables: written by python -m benchmarks.reach_page -->", "<!-- end of tables -->"

Runs = dict[str, dict[str, list[dict[str, Any]]]]


def percent(share: float) -> str:
    """One digit after the point.

    >>> percent(0.51234)
    '51.2'
    """
    return f"{100 * share:.1f}"


def row(found: list[dict[str, Any]]) -> tuple[object, ...]:
    """One arm: its runs are in the order of their seeds."""
    first = found[0]
    height, width = first["receptive_field"]
    return (
        first["settings"]["words"],
        f"{first['parameters']:,}",
        f"{height} x {width}",
        ", ".join(percent(f["accuracy"]) for f in found),
        ", ".join(str(f["settings"]["seed"]) for f in found),
        first["settings"]["recipe"]["epochs"],
        ", ".join(f"{f['seconds']:.0f}" for f in found),
    )


def section(runs: Runs) -> str:
    """All tables, markers included."""
    head = (
        "in the place of the layer", "parameters", "window, pixels", "test accuracy, %", "seeds", "epochs",
        "seconds",
    )  # fmt: skip
    parts = [START]
    for data in DATA:
        if data in runs:
            parts += [f"## Results on {data}", table(head, [row(found) for found in runs[data].values()])]
    some = next(iter(next(iter(runs.values())).values()))[0]
    parts.append(
        f"{hardware(some)}. Other work ran on the machine, so the seconds are not benchmarks. *Window*: how "
        "much of the image reaches the central feature; 48 x 48 is all of it."
    )
    return "\n\n".join([*parts, END])


def main() -> None:
    """Put the tables into the page, between its markers."""
    put(PAGE, section(read_runs()))


if __name__ == "__main__":
    main()
