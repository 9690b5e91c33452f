"""Writes the tables and the picture of docs/does-it-pay.md from results/ablation/.

python -m benchmarks.ablation_page
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from globalcnn.viz.figure import new_figure, save

from .pages import RESULTS, ROOT, hardware, milliseconds, put, table

PAGE = ROOT / "docs" / "does-it-pay.md"
PICTURE = ROOT / "docs" / "images" / "ablation.png"
START, END = "<!-- tables: written by python -m benchmarks.ablation_page -->", "<!-- end of tables -->"
FOLDER = RESULTS / "ablation"
BASELINE, PUBLISHED = "depthwise-3", "published"
BATCHES = (1, 64)


def read() -> list[dict[str, Any]]:
    """The ablations, each with the times of its arms where they were measured."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        if path.name.startswith("latency-"):
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        times = FOLDER / f"latency-{content['network']}.json"
        content["times"] = json.loads(times.read_text(encoding="utf-8")) if times.is_file() else None
        found.append(content)
    return found


def accuracies(arm: dict[str, Any]) -> list[float]:
    """Test accuracy after the last epoch of each seed, in percent."""
    return [100 * run["test_accuracy"] for run in arm["runs"]]


def spread(values: Sequence[float]) -> str:
    """Mean, and in brackets the value of each seed.

    >>> spread([31.0, 32.0]), spread([31.04])
    ('31.5 (31.0, 32.0)', '31.0 (31.0)')
    """
    return f"{mean(values):.1f} ({', '.join(f'{v:.1f}' for v in values)})"


def lead(content: dict[str, Any], name: str, other: str) -> tuple[float, int] | None:
    """Mean lead of an arm over another in points, over the seeds that both have; and how many those are."""
    if name not in content["arms"] or other not in content["arms"]:
        return None
    ours, theirs = (
        {run["seed"]: 100 * run["test_accuracy"] for run in content["arms"][n]["runs"]} for n in (name, other)
    )
    both = sorted(ours.keys() & theirs.keys())
    return (mean(ours[s] - theirs[s] for s in both), len(both)) if both else None


def fastest(times: dict[str, Any] | None, arm: str, batch: int) -> tuple[float, str] | None:
    """Seconds of an arm in the engine that runs it fastest, and that engine."""
    if times is None or arm not in times["arms"]:
        return None
    engines = times["arms"][arm][str(batch)]
    known = [(seconds, name) for name, seconds in engines.items() if seconds is not None]
    return min(known) if known else None


def _time(content: dict[str, Any], arm: str, batch: int) -> str:
    found = fastest(content["times"], arm, batch)
    return "-" if found is None else f"{milliseconds(found[0])} ({found[1]})"


def arms_table(content: dict[str, Any]) -> str:
    """A row per arm, the most accurate first."""
    order = sorted(content["arms"].items(), key=lambda item: -mean(accuracies(item[1])))
    rows = []
    for name, arm in order:
        difference = lead(content, name, BASELINE)
        rows.append(
            (
                f"`{name}`",
                arm["question"],
                spread(accuracies(arm)),
                "-" if difference is None or name == BASELINE else f"{difference[0]:+.1f}",
                f"{arm['parameters']:,}",
                f"{arm['macs'] / 1e6:.2f}",
                *(_time(content, name, batch) for batch in BATCHES),
            )
        )
    columns = (
        "arm",
        "in the layers' place",
        "test accuracy, %: mean (seeds)",
        f"points over `{BASELINE}`, same seeds",
        "parameters",
        "M multiply-adds",
        *(f"ms at batch {batch} (engine)" for batch in BATCHES),
    )
    return table(columns, rows)


def times_table(content: dict[str, Any]) -> str:
    """Milliseconds of each arm in each engine, in the order of the fastest at batch 1."""
    times = content["times"]
    engines = times["engines"]

    def cells(arm: str) -> list[str]:
        found = (times["arms"][arm][str(batch)][engine] for batch in BATCHES for engine in engines)
        return ["-" if seconds is None else milliseconds(seconds) for seconds in found]

    known = [(fastest(times, arm, BATCHES[0]), arm) for arm in times["arms"]]
    order = [arm for found, arm in sorted(known, key=lambda item: item[0] or (float("inf"), ""))]
    columns = ("arm", *(f"{engine}, batch {batch}" for batch in BATCHES for engine in engines))
    return table(columns, [(f"`{arm}`", *cells(arm)) for arm in order])


def _about(content: dict[str, Any]) -> str:
    recipe = content["recipe"]
    text = (
        f"**{content['network']} on {content['data']}**, {recipe['epochs']} epochs, batch {recipe['batch_size']}, "
        f"{recipe['optimizer']} with lr {recipe['lr']:g} and {recipe['schedule']} schedule, weight decay "
        f"{recipe['weight_decay']:g}; {100 * recipe['validation']:.0f} % of the training images held out; accuracy "
        f"after the last epoch. {hardware(content)}."
    )
    if content["times"] is not None:
        times = content["times"]
        text += (
            f" Times: fastest engine of {', '.join(times['engines'])}, medians of {times['rounds']} "
            f"interleaved rounds, one engine after the other, threads not bound. {hardware(times)}."
        )
    return text


def section(found: Sequence[dict[str, Any]]) -> str:
    """The text between the markers."""
    parts = [START, ""]
    for content in found:
        parts += [_about(content), "", arms_table(content), ""]
    timed = {c["network"]: c for c in found if c["times"] is not None}
    for network, content in timed.items():
        parts += [f"**Milliseconds of {network} by engine**", "", times_table(content), ""]
    return "\n".join([*parts, END])


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over latency in the engine that runs each arm fastest, one panel per ablation and batch."""
    timed = [c for c in found if c["times"] is not None]
    if not timed:
        return
    figure, grid = new_figure(
        len(timed), len(BATCHES), width=12.0, height=5.0 * len(timed), squeeze=False, sharey="row"
    )
    for content, line in zip(timed, grid, strict=True):
        for batch, axes in zip(BATCHES, line, strict=True):
            _panel(content, batch, axes)
    save(figure, path)


def _write_names(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Each name right of its point, lower where it would cover another name."""
    axes.autoscale_view()
    to_points = axes.figure.dpi / 72
    taken: list[tuple[float, float, float]] = []  # left, right, height, in typographic points
    for name, (x, y) in sorted(points.items(), key=lambda item: (-item[1][1], item[1][0])):
        left, base = (c / to_points for c in axes.transData.transform((x, y)))
        right, down = left + 4 + 3.6 * len(name), 3.0
        while any(left < r and lft < right and abs(base + down - h) < 7 for lft, r, h in taken):
            down -= 1.0
        taken.append((left, right, base + down))
        axes.annotate(name, (x, y), xytext=(4, down), textcoords="offset points", fontsize=7)


def _panel(content: dict[str, Any], batch: int, axes: Any) -> None:
    points = {}
    for name, arm in content["arms"].items():
        found = fastest(content["times"], name, batch)
        if found is None:
            continue
        values = accuracies(arm)
        colour = "tab:red" if name.startswith("published") else "tab:blue" if "sweeps" in name else "tab:gray"
        x = 1e3 * found[0]
        axes.plot([x, x], [min(values), max(values)], color=colour, lw=1)
        axes.plot(x, mean(values), "o", color=colour)
        points[name] = x, mean(values)
    axes.margins(x=0.25)  # room for names
    _write_names(axes, points)
    axes.set(
        xlabel=f"ms at batch {batch}, fastest engine",
        ylabel="test accuracy, %",
        title=f"{content['network']} on {content['data']}, {content['recipe']['epochs']} epochs of {content['recipe']['optimizer']}",
    )


def main() -> None:
    """Write the page's tables and the picture."""
    found = read()
    put(PAGE, section(found))
    draw(found, PICTURE)


if __name__ == "__main__":
    main()
