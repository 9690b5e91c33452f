"""Writes the tables and the picture of docs/condensing-proof.md from results/condensing/.

python -m benchmarks.condensing_page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from globalcnn.errors import UserError
from globalcnn.viz.figure import new_figure, save

from .condensing.choice import MEASURES, TOLERANCE
from .condensing.collect import FOLDER
from .pages import ROOT, hardware, milliseconds, put, table

PAGE = ROOT / "docs" / "condensing-proof.md"
PICTURE = ROOT / "docs" / "images" / "condensing.png"
START, END = "<!-- tables: written by python -m benchmarks.condensing_page -->", "<!-- end of tables -->"
COLOURS = {
    "condensed-depthwise": "tab:red",
    "condensed-global": "tab:orange",
    "pruned": "tab:blue",
    "pruned-ranked": "tab:cyan",
    "removed": "tab:gray",
    "thinner": "tab:green",
    "resnet-global": "tab:olive",
}
NEW_PAGE = f"""# Does condensing pay?

A trained network is made faster in several ways, at equal measured latency and equal training: repeated blocks
give way to one ([condensing](guides/condensing.md)), channels are pruned (Torch-Pruning), blocks are removed
with nothing in their place, or a smaller network is trained from scratch.

**Latency.** The speed-up is the geometric mean of two: ONNX Runtime at batch 1, PyTorch in eval mode at batch
64. Of the candidates of each way (numbers of blocks that stay, shares of channels), each timed in the same rounds as
the original, the one of most multiply-adds is taken whose speed-up reaches the target less {100 * TOLERANCE:.0f} %.
Those that were taken are then timed again, all in the same rounds: the times in the tables. ResNet-Global is
as fast as it is.

**Training.** Condensed networks are repaired and then trained end to end. Pruned ones are trained end to end for
as many epochs in all, with the same recipe, the same teacher and the same objective; features before pooling
have other channels there, so a learned 1x1 convolution brings them to those of the original. Networks from
scratch learn from labels alone at twice the learning rate, for as many epochs as fit into the wall time of
`condensed-depthwise` at the same target and seed. Accuracy is that after the last epoch; no setting was
chosen by it. Other work may have run during the trainings, so their minutes are no measurement.

{START}
{END}

![Test accuracy over speed-up](images/condensing.png)
"""


def read() -> list[dict[str, Any]]:
    """The results; `UserError` where there are none."""
    paths = [p for p in sorted(FOLDER.glob("*.json")) if not p.name.startswith("latency-")]
    if not paths:
        raise UserError(
            f"{str(FOLDER)!r} holds no results: train with `python -m benchmarks.condensing`, then --collect"
        )
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def percentages(choice: dict[str, Any], key: str = "test_accuracy") -> list[float]:
    """A figure of each seed in percent; empty where the arm has none."""
    return [100 * run[key] for run in choice["runs"] if run[key] is not None]


def spread(values: Sequence[float]) -> str:
    """Mean, and in brackets the value of each seed.

    >>> spread([91.0, 92.0]), spread([])
    ('91.50 (91.00, 92.00)', '-')
    """
    return f"{mean(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})" if values else "-"


def targets(content: dict[str, Any]) -> list[str]:
    """The targets that were trained for, the smallest first."""
    found = {key for arm in content["arms"].values() for key in arm["targets"]}
    return sorted(found, key=float)


def target_table(content: dict[str, Any], target: str) -> str:
    """The original, then a row per arm, the most accurate first."""
    original = content["original"]
    before = 100 * original["test_accuracy"]
    rows: list[tuple[object, ...]] = [
        (
            content["network"],
            "the original",
            f"{before:.2f}",
            "-",
            "-",
            "1.00",
            *(milliseconds(original[key]) for key in MEASURES),
            f"{original['parameters']:,}",
            f"{original['macs'] / 1e6:.1f}",
            "-",
            "-",
        )
    ]
    trained = [
        (n, arm, arm["targets"][target]) for n, arm in content["arms"].items() if target in arm["targets"]
    ]
    for name, arm, choice in sorted(trained, key=lambda item: -mean(percentages(item[2]))):
        rows.append(_row(name, arm, choice, before))
    columns = (
        "arm",
        "how",
        "test accuracy, %: mean (seeds)",
        "points from the original",
        "before training, %",
        "times as fast",
        "ms, ONNX Runtime, batch 1",
        "ms, PyTorch, batch 64",
        "parameters",
        "M multiply-adds",
        "epochs",
        "minutes",
    )
    return table(columns, rows)


def _row(name: str, arm: dict[str, Any], choice: dict[str, Any], before: float) -> tuple[object, ...]:
    accuracies, started = percentages(choice), percentages(choice, "before_recovery")
    epochs = sorted({run["epochs"] + run["repair_epochs"] for run in choice["runs"]})
    return (
        f"`{name}`",
        f"{arm['question']}: {choice['candidate']}",
        spread(accuracies),
        f"{mean(accuracies) - before:+.2f}",
        f"{mean(started):.1f}" if started else "-",
        f"{choice['speedup']:.2f}",
        *(milliseconds(choice[key]) for key in MEASURES),
        f"{choice['parameters']:,}",
        f"{choice['macs'] / 1e6:.1f}",
        " to ".join(map(str, sorted({epochs[0], epochs[-1]}))),
        f"{mean(run['seconds'] for run in choice['runs']) / 60:.0f}",
    )


def section(found: Sequence[dict[str, Any]]) -> str:
    """The text between the markers."""
    parts = [START, ""]
    for content in found:
        parts += [_about(content), ""]
        for target in targets(content):
            parts += [f"**{float(target):g} times as fast**", "", target_table(content, target), ""]
    return "\n".join([*parts, END])


def _about(content: dict[str, Any]) -> str:
    recipe = next(iter(content["arms"].values()))["recipe"]
    seeds = ", ".join(map(str, content["seeds"]))
    return (
        f"**{content['network']} on {content['data']}**: {content['epochs']} epochs of recovery, batch "
        f"{recipe['batch_size']}, {recipe['optimizer']} with lr {recipe['lr']:g} and {recipe['schedule']} schedule; "
        f"{100 * recipe['validation']:.0f} % of the training images held out; "
        f"{'mixed precision ' + recipe['precision'] + '; ' if recipe['precision'] != 'no' else ''}seeds {seeds}. Trained: "
        f"{hardware(content)}. Timed: {hardware(content['timed'])}, medians of {content['timed']['rounds']} rounds."
    )


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over speed-up, a panel per network and data; lines join the targets of an arm."""
    figure, grid = new_figure(1, len(found), width=8.5 * len(found), height=5.0, squeeze=False)
    for content, axes in zip(found, grid[0], strict=True):
        for name, arm in content["arms"].items():
            choices = [arm["targets"][key] for key in sorted(arm["targets"], key=float)]
            x, colour = [c["speedup"] for c in choices], COLOURS.get(name, "black")
            axes.plot(x, [mean(percentages(c)) for c in choices], "o-", color=colour, label=name)
            for c in choices:
                values = percentages(c)
                axes.plot([c["speedup"]] * 2, [min(values), max(values)], color=colour, lw=1)
        axes.axhline(100 * content["original"]["test_accuracy"], color="black", ls=":", label="original")
        axes.set(
            xlabel="times as fast as the original",
            ylabel="test accuracy, %",
            title=f"{content['network']} on {content['data']}",
        )
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)


def main() -> int:
    """Write the page's tables and the picture; returns the exit status."""
    try:
        found = read()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not PAGE.is_file():
        PAGE.write_text(NEW_PAGE, encoding="utf-8")
    put(PAGE, section(found))
    draw(found, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
