"""Tables of `globalcnn bench` as pictures; `python -m benchmarks.pictures FOLDER...` draws them anew from bench.json."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from globalcnn.files import read_json
from globalcnn.viz.figure import new_figure, save

OURS, THEIRS = "tab:blue", "tab:orange"


def plot_bench(table: Mapping[str, Any], path: Path) -> None:
    """A table of the benchmark, as its `as_dict()` gives it, as a PNG at `path`."""
    if table["kind"] == "memory":
        _plot_memory(table, path)
    else:
        _plot_comparison(table, path)


def _plot_comparison(table: Mapping[str, Any], path: Path) -> None:
    """Left the time per image of both sides in all variants, the fastest large; right the ratio of the fastest."""
    cells = table["cells"]
    rows = list(range(len(cells)))[::-1]
    figure, (times, ratios) = new_figure(
        1, 2, width=14.0, height=1.9 + 0.55 * len(cells), gridspec_kw={"width_ratios": [3, 2]}
    )
    _plot_times(times, rows, cells)
    _plot_ratios(ratios, rows, cells)
    labels = [cell["name"].replace(", batch", "\nbatch").replace(" / ", "\n/ ") for cell in cells]
    times.set(yticks=rows, yticklabels=labels)
    ratios.set(yticks=rows, yticklabels=[])
    for axes in (times, ratios):
        axes.set_ylim(-0.6, len(cells) - 0.4)
        axes.tick_params(axis="y", length=0)
        for row in rows[::2]:
            axes.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    entries = [axes.get_legend_handles_labels() for axes in (times, ratios)]
    handles, words = ([*a, *b] for a, b in zip(*entries, strict=True))
    figure.legend(handles, words, loc="outside lower left", ncols=4, fontsize=9)
    figure.suptitle(table["title"])
    save(figure, path)


def _plot_times(axes: Any, rows: Sequence[int], cells: Sequence[Mapping[str, Any]]) -> None:
    for key, color, up, many in (
        ("ours", OURS, 0.2, "with Global layers"),
        ("theirs", THEIRS, -0.2, "compared with"),
    ):
        names = {cell[key]["name"] for cell in cells}
        label = names.pop() if len(names) == 1 else many
        axes.plot([], [], "o", color=color, markersize=9, label=label)
        for row, cell in zip(rows, cells, strict=True):
            variants = [f for f in cell[key]["variants"] if f["seconds"] is not None]
            spent = {f["variant"]: 1e3 * f["seconds"] / cell["images"] for f in variants}
            fastest = cell[key]["fastest"]
            if fastest is None:
                continue
            roofline = [time for variant, time in spent.items() if variant.startswith("roofline")]
            axes.plot(roofline, [row + up] * len(roofline), "|", color="0.3", markersize=9)
            apart = ("roofline", "K = ")  # these are no variants of the same layer
            others = [
                time
                for variant, time in spent.items()
                if variant != fastest and not variant.startswith(apart)
            ]
            axes.plot(others, [row + up] * len(others), "o", color=color, fillstyle="none", markersize=5)
            axes.plot(spent[fastest], row + up, "o", color=color, markersize=9)
            _label(axes, row + up, f"{spent[fastest]:.3g}  {fastest}", color=color)
    axes.plot([], [], "o", color="0.3", fillstyle="none", markersize=5, label="its other variants")
    if any(f["variant"].startswith("roofline") for cell in cells for f in cell["ours"]["variants"]):
        axes.plot([], [], "|", color="0.3", markersize=9, label="roofline: call, bytes, arithmetic")
    axes.set(xscale="log", xlabel="time per image, ms (median; log scale)")
    low, high = axes.get_xlim()
    narrow = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    usual = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0, 3.0)
    axes.xaxis.set_major_locator(LogLocator(subs=usual if high > 8 * low else narrow))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.3)


def _plot_ratios(axes: Any, rows: Sequence[int], cells: Sequence[Mapping[str, Any]]) -> None:
    found = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell["ratio"] is not None]
    largest = 1.0
    for row, cell in found:
        ratio, macs = cell["ratio"], cell["facts"].get("macs_ratio")
        axes.barh(row, ratio, height=0.5, color="0.7", zorder=2)
        if macs is not None:
            axes.plot(macs, row, "D", color="tab:red", markersize=5, zorder=3)
        _label(axes, row, f"{ratio:.2f}", color="black")
        largest = max(largest, ratio, macs or 0.0)
    if any("macs_ratio" in cell["facts"] for _, cell in found):
        axes.plot([], [], "D", color="tab:red", markersize=5, label="ratio of multiply-adds")
    axes.axvline(1.0, color="black", linewidth=1, zorder=4)
    axes.set_xlim(0, 1.05 * largest)
    axes.set_xlabel("blue / orange, the fastest of each (below 1: blue is faster)")


def _label(axes: Any, row: float, words: str, *, color: str) -> None:
    """Words to the right of the axes, level with the row."""
    place = axes.get_yaxis_transform()
    axes.text(1.01, row, words, transform=place, va="center", fontsize=9, color=color)


def _plot_memory(table: Mapping[str, Any], path: Path) -> None:
    figure, panels = new_figure(1, 2, width=10.0, height=4.0, sharey=True)
    backends = list(dict.fromkeys(row["backend"] for row in table["rows"]))
    for axes, key, words in zip(
        panels, ("kept", "peak"), ("kept for the backward", "peak of a step"), strict=True
    ):
        for backend, color in zip(backends, (OURS, THEIRS), strict=False):
            rows = [r for r in table["rows"] if r["backend"] == backend and r[key] is not None]
            sizes = [r[key] / 2**20 for r in rows]
            axes.plot([r["steps"] for r in rows], sizes, "o-", color=color, label=f"{backend} backend")
        axes.axhline(table["input_bytes"] / 2**20, color="0.5", linestyle=":", label="one feature map")
        axes.set(xlabel="steps K", title=words, xticks=sorted({r["steps"] for r in table["rows"]}))
        axes.grid(alpha=0.25)
    largest = max((r[k] for r in table["rows"] for k in ("kept", "peak") if r[k] is not None), default=1)
    panels[0].set_ylim(0, 1.08 * largest / 2**20)
    panels[0].set_ylabel("MiB")
    panels[0].legend(fontsize=9, loc="upper left")
    figure.suptitle(table["title"])
    save(figure, path)


def main(folders: Sequence[str]) -> None:
    """Draw every table of the bench.json in each of `folders` next to it."""
    for folder in map(Path, folders):
        for word, table in read_json(folder / "bench.json")["tables"].items():
            plot_bench(table, folder / f"{word}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
