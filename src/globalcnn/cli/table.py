"""`globalcnn table`: every row of the published tables, with this library's counts and accuracies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from ..errors import UserError
from ..models import shown_name
from ..reproduce import TableRow, published_table
from .console import count, say, table


@dataclass(frozen=True)
class Args:
    """Print every row of the published tables: accuracy, parameters and multiply-adds as printed, and ours.

    Ours are counted now, for one image: parameters; multiply-adds by the paper's counting (convolutions and
    their biases, linear layers, 2 per element of BatchNorm, average pooling); of convolutions and linear
    layers; of these and the PDE, which is what all other commands show. For implicit networks: outside the
    implicit layers, per evaluation, and evaluations. What cannot be reproduced is said under the tables, with
    by how much. Counting all of them takes about a minute.
    """

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON: a list with one entry per row."""
    results: Path | None = None
    """Folder of results of `globalcnn train` and `compare`, and of the rows of weights/, to take measured
    accuracies from. Default: results, if it is here."""


def run(args: Args) -> None:
    """Count, print."""
    if args.results is not None and not args.results.is_dir():
        raise UserError(f"--results {str(args.results)!r} is not a folder; leave it out for counts alone")
    folder = Path("results") if args.results is None else args.results
    rows = published_table(folder if folder.is_dir() else None)
    if args.json:
        say(json.dumps([asdict(row) for row in rows], indent=1))
        return
    for name in dict.fromkeys(row.table for row in rows):
        _print([row for row in rows if row.table == name], name)


def _print(rows: list[TableRow], name: str) -> None:
    columns = (
        *("row", "dataset", "model", "acc", "ours", "params", "ours"),
        *("multiply-adds", "the paper's counting", "conv, linear", "with the PDE"),
    )
    cells = []
    for r in rows:
        p = r.published
        macs = count(p.get("macs")), r.macs_paper, r.macs_products, r.macs
        cells.append(
            (
                *(r.row, r.dataset, shown_name(r.model), p.get("acc", "-")),
                "-" if r.accuracy is None else f"{r.accuracy:.2f}",
                *(count(p.get("params")), r.params, *macs),
            )
        )
    table(name, columns, cells)
    for r in rows:
        if r.implicit is not None:
            s = r.implicit
            say(
                f"  {r.row} ({r.dataset}): {count(s['outside'])} outside the implicit layers + "
                f"{count(s['per_evaluation'])} per evaluation x {s['evaluations']} evaluations"
            )
        if r.note:
            say(f"  {r.row} ({r.dataset}): {r.note}")
    say()
