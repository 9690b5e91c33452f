"""The learning curves of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure import new_figure, save


def plot_curves(epochs: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Loss, accuracy and learning rate against the epoch, as a PNG at `path`.

    epochs: the entries of a run's metrics.jsonl.
    """
    figure, (loss, accuracy, lr) = new_figure(1, 3, width=12.0, height=3.4)
    x = [e["epoch"] for e in epochs]
    for axes, name, train, val in (
        (loss, "loss", "train_loss", "val_loss"),
        (accuracy, "accuracy, %", "train_accuracy", "val_accuracy"),
    ):
        scale = 100 if "accuracy" in name else 1
        for key, label in ((train, "training, augmented"), (val, "held out")):
            points = [(i, scale * e[key]) for i, e in zip(x, epochs, strict=True) if e.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None, label=label)
        axes.set(xlabel="epoch", ylabel=name)
        if axes.lines:  # mixed targets without held-out images leave no accuracy to draw
            axes.legend()
    lr.plot(x, [e["lr"] for e in epochs], color="tab:gray")
    lr.set(xlabel="epoch", ylabel="learning rate at the epoch's end")
    figure.suptitle(title)
    save(figure, path)
