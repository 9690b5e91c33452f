"""Every row of the published tables, with this library's counts and accuracies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import as_list
from ..measure import depth
from ..models import create_model, is_reconstruction
from ..nn.implicit import ImplicitCounts, implicit_counts
from .counting import PaperCounts, paper_counts
from .rows import PublishedRow, published_rows

# a printed figure is called reproduced if it is as near as both of these allow
ROUNDING = 0.025  # of it
LAST_DIGIT = 1  # units of its last printed digit that is not 0: figures are rounded or cut off
DATASETS = {"mnist": ("MNIST", "MNIST-10"), "cifar10": ("CIFAR-10",), "cifar100": ("CIFAR-100",)}


class Measured(NamedTuple):
    """A result of ours: test accuracy in %, where it comes from, and confusions of 3 and 5 if counted."""

    accuracy: float
    where: str
    confusion_3_5: float | None = None


@dataclass(frozen=True)
class TableRow:
    """One row: as printed, as counted, and the test accuracy that results/ has for it.

    params; macs_paper, by the paper's counting; macs_products, of convolutions and linear layers; macs, of
    these and the PDE, which is this library's count everywhere else; all for one image. Implicit networks
    count their published number of evaluations. published: the printed figures (acc in % top-1); accuracy:
    ours in %, None if there is none; implicit: what an implicit network costs outside its implicit layers and
    per evaluation, and how many evaluations; reconstruction: no public configuration exists; note: in words,
    what cannot be reproduced and by how much.
    """

    table: str
    row: str
    dataset: str
    model: str
    num_classes: int
    params: int
    macs_paper: int
    macs_products: int
    macs: int
    published: dict[str, float]
    accuracy: float | None
    implicit: dict[str, int] | None
    reconstruction: bool
    note: str


def published_table(results: Path | None = None) -> list[TableRow]:
    """All rows, counted now; accuracies from a folder `results` that `train` and `compare` wrote."""
    measured = {} if results is None else measured_accuracies(results)
    return [_row(row, measured.get((row.model, row.dataset))) for row in published_rows()]


def _row(row: PublishedRow, measured: Measured | None) -> TableRow:
    counts, solve, solve_paper = _counted(row.model, row.num_classes, row.input)
    products = counts.macs_products if solve is None else solve.macs()
    paper = counts.macs_paper if solve_paper is None else solve_paper.macs()
    notes = [row.note] if row.note else []
    notes += _deviations(row, counts.params, products, paper)
    notes += _other_figures(row)
    if measured is not None:
        notes += _beside_ours(row, measured)
    return TableRow(
        table=row.table,
        row=row.row,
        dataset=row.dataset,
        model=row.model,
        num_classes=row.num_classes,
        params=counts.params,
        macs_paper=paper,
        macs_products=products,
        macs=products + counts.pde,
        published=row.published,
        accuracy=None if measured is None else measured.accuracy,
        implicit=None
        if solve is None
        else {
            "outside": solve.outside,
            "per_evaluation": solve.per_evaluation,
            "evaluations": solve.evaluations,
        },
        reconstruction=is_reconstruction(row.model),
        note=" ".join(notes),
    )


@cache
def _counted(
    model: str, num_classes: int, input_size: tuple[int, int, int]
) -> tuple[PaperCounts, ImplicitCounts | None, ImplicitCounts | None]:
    """The counts, and of an implicit network its products and the paper's counting per evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # how many evaluations an implicit layer takes depends on the weights
        network = create_model(model, num_classes=num_classes)
        counts = paper_counts(network, input_size)
    return counts, implicit_counts(network, counts.products), implicit_counts(network, counts.paper)


def _deviations(row: PublishedRow, params: int, products: int, paper: int) -> list[str]:
    """Notes on figures that are not reproduced, with the deviation; for a reconstruction on every figure."""
    words = []
    for name, printed, ours, plain in (
        ("parameters", row.published.get("params"), params, None),
        ("multiply-adds", row.published.get("macs"), paper, products),
    ):
        if printed is None or (reproduced(printed, ours) and not is_reconstruction(row.model)):
            continue
        off = ours / printed - 1
        line = f"Printed {printed:.4g} {name}, counted {ours:.4g} ({100 * off:+.1f} %)"
        if plain is not None and abs(plain / printed - 1) < abs(off):
            line += f", of convolutions and linear layers alone {100 * (plain / printed - 1):+.1f} %"
        words.append(line + ".")
    return words


def reproduced(printed: float, ours: float) -> bool:
    """Whether a count agrees with the printed figure, up to rounding.

    >>> reproduced(460e3, 466906), reproduced(473e3, 466906), reproduced(10e6, 11098398)
    (True, False, False)
    """
    unit = 1
    while printed % (10 * unit) == 0:
        unit *= 10
    return abs(ours - printed) <= min(LAST_DIGIT * unit, ROUNDING * printed)


def _other_figures(row: PublishedRow) -> list[str]:
    """Notes on printed depths and times, for which the tables have no column."""
    words = []
    if "depth" in row.published:
        printed, ours = row.published["depth"], _depth(row.model, row.num_classes, row.input)
        words.append(
            f"Printed depth {printed}; weighted layers on the longest path {ours} ({ours - printed:+}): "
            "not reproduced, how it was counted is not known."
        )
    if "infer_s" in row.published:
        seconds = row.published["infer_s"]
        words.append(
            f"Printed inference time {seconds} s: not compared, its batch and hardware are not known."
        )
    return words


@cache
def _depth(model: str, num_classes: int, input_size: tuple[int, int, int]) -> int:
    with torch.random.fork_rng(devices=[]):
        return depth(create_model(model, num_classes=num_classes), input_size)


def _beside_ours(row: PublishedRow, measured: Measured) -> list[str]:
    words = [measured.where]
    if "acc" in row.published:
        printed = row.published["acc"]
        off = measured.accuracy - printed
        words.append(f"Printed accuracy {printed:.4g} %, ours {measured.accuracy:.2f} % ({off:+.2f}).")
    if "confusion_3_5" in row.published and measured.confusion_3_5 is not None:
        printed, ours = row.published["confusion_3_5"], measured.confusion_3_5
        words.append(f"Printed confusions of 3 and 5 {printed}, ours {ours:.1f} ({ours - printed:+.1f}).")
    return words


def measured_accuracies(folder: Path) -> dict[tuple[str, str], Measured]:
    """(model, dataset) to our accuracy and where it comes from, of all results below `folder`.

    Of several results for the same network and dataset one without a teacher counts before those with one, as
    nothing in print had a teacher; then the one of most epochs, of equal ones that of weights which come with
    the library.
    """
    best: dict[tuple[str, str], tuple[tuple[bool, int, bool], Measured]] = {}
    for file in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(content, dict):
            continue
        for model, data, epochs, accuracy, seeds, confusions in _accuracies(content):
            teachers, before = _teachers(content), _epochs_before(content)
            taught = f"learning from {', '.join(teachers)}, " if teachers else ""
            after = f" after {before} earlier ones" if before else ""
            where = f"Ours: {epochs} epoch(s){after}, {seeds} seed(s), {taught}{file.relative_to(folder)}."
            rank = (not teachers, before + epochs, "row" in content)
            for dataset in DATASETS.get(data, ()):
                if (model, dataset) not in best or rank > best[model, dataset][0]:
                    best[model, dataset] = (rank, Measured(round(100 * accuracy, 4), where, confusions))
    return {key: found for key, (_, found) in best.items()}


def _trainings(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is told of a training, or of the first run of a row of weights/, and of those before it that its
    initial weights come from."""
    runs = content.get("runs")
    told = runs[0] if "row" in content and isinstance(runs, list) and runs else content
    while isinstance(told, dict):
        yield told
        told = told.get("init")


def _teachers(content: dict[str, Any]) -> list[str]:
    """From which networks those trainings learned besides the labels."""
    named = [told["teacher"] for told in _trainings(content) if isinstance(told.get("teacher"), dict)]
    return list(dict.fromkeys(str(path) for teacher in named for path in as_list(teacher.get("path"))))


def _epochs_before(content: dict[str, Any]) -> int:
    """Epochs of the trainings that the initial weights come from."""
    _, *before = _trainings(content)
    return sum(told.get("recipe", {}).get("epochs", 0) for told in before)


def _accuracies(content: dict[str, Any]) -> Iterator[tuple[str, str, int, float, int, float | None]]:
    """(model, data, epochs, accuracy, seeds, confusions of 3 and 5) of a result of `compare` or `train`, or
    of a row of weights/; nothing for other files."""
    try:
        if "results" in content:
            for r in content["results"]:
                each = r["confusions"] if r.get("confusions_between") == [3, 5] else []
                confusions = sum(each) / len(each) if each else None
                epochs, seeds = content["recipe"]["epochs"], len(r["seeds"])
                yield r["model"], content["data"], epochs, r["accuracy_mean"], seeds, confusions
        elif "row" in content:
            name, _, data = content["row"].rpartition("-")
            runs = content["runs"]
            accuracy = sum(run["test_accuracy"] for run in runs) / len(runs)
            yield name, data, runs[0]["epochs"], accuracy, len(runs), None
        elif "test_accuracy" in content:
            name, data = content["model"]["model"], content["data"]["name"]
            yield name, data, content["epochs"], content["test_accuracy"], 1, None
    except (LookupError, TypeError, AttributeError, ZeroDivisionError):
        return
