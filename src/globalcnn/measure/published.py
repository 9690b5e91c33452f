"""Every row of the published tables beside what this library counts and has measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..models import create_model
from ..models.published import PublishedRow, published_rows
from ..nn.solving import SolveCounts, solve_counts
from .counts import Counts, count

# how far a printed figure may be off by rounding and still be called reproduced
ROUNDING = 0.025
DATASETS = {"mnist": ("MNIST", "MNIST-10"), "cifar10": ("CIFAR-10",), "cifar100": ("CIFAR-100",)}


@dataclass(frozen=True)
class TableRow:
    """One row: as printed, as counted, and the test accuracy that results/ has for it.

    params, macs (convolution and linear), macs_paper (the paper's counting), macs_total (that and the
    multiplies of the PDE solve), for one image; networks that solve count their published number of
    evaluations. published: the printed figures (acc in % top-1); accuracy: ours in %, None if there is none;
    solve: what a network that solves costs outside the solve, per evaluation, and how many evaluations; note:
    in words, what cannot be reproduced and by how much.
    """

    table: str
    row: str
    dataset: str
    model: str
    num_classes: int
    params: int
    macs: int
    macs_paper: int
    macs_total: int
    published: dict[str, float]
    accuracy: float | None
    solve: dict[str, int] | None
    note: str


def published_table(results: Path | None = None) -> list[TableRow]:
    """All rows, counted now; accuracies from a folder `results` that `train` and `compare` wrote."""
    measured = {} if results is None else measured_accuracies(results)
    return [_row(row, measured.get((row.model, row.dataset))) for row in published_rows()]


def _row(row: PublishedRow, measured: tuple[float, str] | None) -> TableRow:
    counts, solve = _counted(row.model, row.num_classes, row.input)
    macs = counts.macs if solve is None else solve.macs()
    macs_paper = counts.macs_paper if solve is None else solve.macs_paper()
    notes = [row.note] if row.note else []
    notes += _deviations(row, counts.params, macs_paper)
    if measured is not None:
        notes.append(measured[1])
    return TableRow(
        table=row.table,
        row=row.row,
        dataset=row.dataset,
        model=row.model,
        num_classes=row.num_classes,
        params=counts.params,
        macs=macs,
        macs_paper=macs_paper,
        macs_total=macs_paper + counts.macs_pde,
        published=row.published,
        accuracy=None if measured is None else measured[0],
        solve=None
        if solve is None
        else {
            "outside": solve.outside,
            "per_evaluation": solve.per_evaluation,
            "evaluations": solve.evaluations,
        },
        note=" ".join(notes),
    )


@cache
def _counted(
    model: str, num_classes: int, input_size: tuple[int, int, int]
) -> tuple[Counts, SolveCounts | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # how many evaluations a solver takes depends on the weights
        network = create_model(model, num_classes=num_classes)
        counts = count(network, input_size)
    return counts, solve_counts(network, counts.layers)


def _deviations(row: PublishedRow, params: int, macs: int) -> list[str]:
    words = []
    for name, printed, ours in (
        ("parameters", row.published.get("params"), params),
        ("multiply-adds", row.published.get("macs"), macs),
    ):
        if printed and abs(ours / printed - 1) > ROUNDING:
            off = 100 * (ours / printed - 1)
            words.append(f"Printed {printed:.4g} {name}, counted {ours:.4g} ({off:+.1f} %).")
    return words


def measured_accuracies(folder: Path) -> dict[tuple[str, str], tuple[float, str]]:
    """(model, dataset) to accuracy in % and where it comes from, of all results below `folder`.

    Of several results for the same network and dataset the one of most epochs counts.
    """
    best: dict[tuple[str, str], tuple[int, float, str]] = {}
    for file in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(content, dict):
            continue
        for model, data, epochs, accuracy, seeds in _accuracies(content):
            where = f"Ours: {epochs} epochs, {seeds} seed(s), {file.relative_to(folder)}."
            for dataset in DATASETS.get(data, ()):
                if epochs > best.get((model, dataset), (0, 0.0, ""))[0]:
                    best[model, dataset] = (epochs, 100 * accuracy, where)
    return {key: (accuracy, where) for key, (_, accuracy, where) in best.items()}


def _accuracies(content: dict[str, Any]) -> Iterator[tuple[str, str, int, float, int]]:
    """(model, data, epochs, accuracy, seeds) of a result of `compare` or `train`; nothing for other files."""
    try:
        if "results" in content:
            for result in content["results"]:
                epochs, seeds = content["recipe"]["epochs"], len(result["seeds"])
                yield result["model"], content["data"], epochs, result["accuracy_mean"], seeds
        elif "test_accuracy" in content:
            name, data = content["model"]["model"], content["data"]["name"]
            yield name, data, content["epochs"], content["test_accuracy"], 1
    except (KeyError, TypeError):
        return
