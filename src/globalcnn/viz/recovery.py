"""The recovery of a condensed network as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figure import new_figure, save


def plot_recovery(report: Mapping[str, Any], path: Path, *, title: str = "") -> None:
    """Accuracy against epochs and against minutes, as a PNG at `path`.

    report: as `globalcnn.condense.recover` gives it.
    """
    figure, panels = new_figure(1, 2, width=9.0, height=3.6)
    for axes, key, label in zip(
        panels, ("epochs", "minutes"), ("epochs of recovery", "minutes of recovery"), strict=True
    ):
        for split, name, colour in (("val", "held out", "tab:blue"), ("test", "test", "tab:red")):
            points = [(p[key], 100 * p[split]) for p in report["curve"] if p[split] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour)
            whole = report["original"][split]
            if whole is not None:
                axes.axhline(
                    100 * whole, color=colour, linestyle="--", linewidth=1, label=f"original, {name}"
                )
        axes.set(xlabel=label, ylabel="accuracy, %")
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    save(figure, path)
