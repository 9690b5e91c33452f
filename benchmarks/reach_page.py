"""Writes the tables of docs/reach.md from results/reach/.

python -m benchmarks.reach_page
"""

from __future__ import annotations

from typing import Any

from .pages import ROOT, hardware, put, table
from .reach import DATA, FAR, SEARCH_SEED, far_share, from_rows, read_runs, read_search
from .reach_networks import Setting

PAGE = ROOT / "docs" / "reach.md"
START, END = "<!-- tables: written by python -m benchmarks.reach_page -->", "<!-- end of tables -->"

Runs = dict[str, dict[str, list[dict[str, Any]]]]
Search = dict[str, dict[str, list[tuple[Setting, dict[str, Any]]]]]


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
        ", ".join(percent(far_share(from_rows(f["effective_field"]))) for f in found),
        ", ".join(percent(f["accuracy"]) for f in found),
        ", ".join(str(f["settings"]["seed"]) for f in found),
        first["settings"]["recipe"]["epochs"],
        ", ".join(f"{f['seconds']:.0f}" for f in found),
    )


def search_row(tried: list[tuple[Setting, dict[str, Any]]]) -> tuple[object, ...]:
    """One arm: each setting with its held-out accuracy, the one in use first and bold."""
    cells = [
        f"{setting}: {percent(found['validation'][-1]) if found['validation'] else 'diverged'}"
        for setting, found in tried
    ]
    return (tried[0][1]["settings"]["words"], f"**{cells[0]}**", "; ".join(cells[1:]))


def section(runs: Runs, searched: Search) -> str:
    """All tables, markers included."""
    head = (
        "in the place of the layer", "parameters", "window, pixels", "far share, %", "test accuracy, %", "seeds",
        "epochs", "seconds",
    )  # fmt: skip
    parts = [START]
    for data in DATA:
        if data in runs:
            parts += [f"## Results on {data}", table(head, [row(found) for found in runs[data].values()])]
    some = next(iter(next(iter(runs.values())).values()))[0]
    parts.append(
        f"{hardware(some)}. Other work ran on the machine, so the seconds are not benchmarks. *Window*: how "
        "much of the image reaches the central feature; 48 x 48 is all of it. *Far share*: how much of the "
        "central feature's effective field (after training, below) lies farther than "
        f"{FAR:g} pixels from its place, for each seed."
    )
    for data, arms in searched.items():
        parts += [
            f"## The search on {data}",
            f"Accuracy on held-out training images, %, after one training of each setting, seed {SEARCH_SEED}.",
            table(
                ("in the place of the layer", "best: in use", "others"),
                [search_row(tried) for tried in arms.values()],
            ),
        ]
    return "\n\n".join([*parts, END])


def main() -> None:
    """Put the tables into the page, between its markers."""
    put(PAGE, section(read_runs(), read_search()))


if __name__ == "__main__":
    main()
