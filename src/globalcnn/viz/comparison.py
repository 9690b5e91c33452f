"""Several networks side by side as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models import shown_name
from .figure import new_figure, save


def plot_comparison(entries: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Accuracy (every seed, and the mean), size, and latency of each network, as a PNG at `path`.

    entries: figures as `Compared.figures()` gives them.
    """
    names = [shown_name(e["model"]).replace(" ", "\n") for e in entries]
    figure, (accuracy, size, time) = new_figure(1, 3, width=13.0, height=1.8 + 0.55 * len(names))
    rows = list(range(len(names)))[::-1]
    for row, entry in zip(rows, entries, strict=True):
        values = [100 * a for a in entry["accuracy"]]
        accuracy.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.5)
        accuracy.plot(100 * entry["accuracy_mean"], row, "|", color="black", markersize=18, markeredgewidth=2)
        accuracy.annotate(
            f"{100 * entry['accuracy_mean']:.2f}", (100 * entry["accuracy_mean"], row), (0, 11),
            textcoords="offset points", ha="center", fontsize=9,
        )  # fmt: skip
    accuracy.set(xlabel="test accuracy, % (dots: seeds, bar: mean)", yticks=rows, yticklabels=names)
    accuracy.set_ylim(-0.6, len(names) - 0.3)
    accuracy.margins(x=0.12)
    _bars(
        size,
        rows,
        [
            ("parameters", [e["params"] for e in entries]),
            ("multiply-adds", [e["macs"] for e in entries]),
        ],
    )
    size.set(xscale="log", xlabel="parameters; multiply-adds", yticks=rows, yticklabels=[])
    batches = list(entries[0]["latency"])
    _bars(
        time, rows,
        [(f"batch {b}", [1e3 * e["latency"][b]["median"] / int(b) for e in entries]) for b in batches],
    )  # fmt: skip
    time.set(xlabel="time per image, ms (median)", yticks=rows, yticklabels=[])
    for axes in (size, time):
        axes.margins(x=0.25)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    save(figure, path)


def _bars(axes: Any, rows: Sequence[int], groups: Sequence[tuple[str, Sequence[float]]]) -> None:
    thick = 0.8 / len(groups)
    for i, (label, values) in enumerate(groups):
        offset = 0.4 - thick * (i + 0.5)
        bars = axes.barh([r + offset for r in rows], values, height=thick, label=label)
        axes.bar_label(bars, [_short(v) for v in values], fontsize=8, padding=2)


def _short(value: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
