"""What `globalcnn bench` does: measures the tables, prints them, writes bench.json and the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from globalcnn.cli.console import milliseconds, say, table
from globalcnn.cli.networks import build_named
from globalcnn.cli.options import new_folder
from globalcnn.errors import UserError, unknown_name
from globalcnn.files import write_json

from . import machine
from .networks import compare_given
from .pictures import plot_bench
from .results import Cell, Comparison, MemoryTable, Progress, Result, Settings
from .tables import TABLES, TableInfo

JSON = "bench.json"
GIVEN = "models"  # the table of networks that were named


def run(args: Any) -> None:
    """Measure, print, write. args: `globalcnn.cli.bench.Args`."""
    tables = _checked(args)
    words = [*TABLES, GIVEN]
    folder = new_folder(args.out, overwrite=args.overwrite, ours=[JSON, *(f"{w}.png" for w in words)])
    settings = Settings(args.rounds, args.seconds)
    if args.quick:
        settings = Settings(min(args.rounds, 2), min(args.seconds, 1.0), quick=True)
    threads = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        _measure(tables, settings, folder)
    finally:
        torch.set_num_threads(threads)


def _checked(args: Any) -> dict[str, TableInfo]:
    """The tables that were asked for, by their words."""
    for word in args.tables:
        if word not in TABLES:
            raise unknown_name("table", word, TABLES)
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds} must be 1 or more")
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise UserError(f"--seconds {args.seconds} must be a positive number")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads} must be 1 or more")
    if not args.models:
        return {word: TABLES[word] for word in args.tables or TABLES}
    return {**{word: TABLES[word] for word in args.tables}, GIVEN: _given(args)}


def _given(args: Any) -> TableInfo:
    """The table of the networks in `--models`; each is built once now, so that a mistake is said at once."""
    if len(args.models) < 2:
        raise UserError(
            f"--models {args.models[0]}: name two networks or more, the first is compared with each"
        )
    if not args.batches or min(args.batches) < 1:
        raise UserError(f"--batches {' '.join(map(str, args.batches))}: give numbers of 1 or more")
    sized = {"num_classes": args.num_classes, "in_chans": args.in_chans, "image_size": args.image_size}
    for name in args.models:
        build_named(name, **sized)
    compare: Callable[[Settings, Progress], Result] = partial(
        compare_given, args.models, batches=args.batches, **sized
    )
    return TableInfo(f"{args.models[0]} against {', '.join(args.models[1:])}, inference", compare)


def _measure(tables: dict[str, TableInfo], settings: Settings, folder: Path) -> None:
    load = machine.load_averages()
    loaded = machine.is_loaded(load)
    if loaded:
        say(f"warning: other work runs on this machine (load {load}); times will be too long and unsteady")
    facts: dict[str, Any] = {
        "settings": asdict(settings),
        "quick": settings.quick,
        "load_before": load,
        "loaded": loaded,
        "allocator": machine.keep_memory(),
        **machine.facts(seed=0),  # of the untrained weights and the images
        "tables": {},
    }
    say(f"{torch.get_num_threads()} thread(s); {facts['binding']}; native kernels: {facts['native']}")
    for word, info in tables.items():
        say(f"{word}: {info.about}")
        result = info.run(settings, lambda line: say(f"  {line}"))
        _print(result)
        facts["tables"][word] = result.as_dict()
        facts["load_after"] = machine.load_averages()
        write_json(folder / JSON, facts)  # after each table: a long run that is stopped keeps what it has
        plot_bench(result.as_dict(), folder / f"{word}.png")
    say(f"wrote {folder / JSON} and {', '.join(f'{word}.png' for word in tables)}")


def _print(result: Result) -> None:
    if isinstance(result, MemoryTable):
        _print_memory(result)
    else:
        _print_comparison(result)
    for note in result.notes:
        say(f"  {note}")
    say()


def _print_comparison(result: Comparison) -> None:
    sides = [side for cell in result.cells for side in (cell.ours, cell.theirs)]
    variants = list(dict.fromkeys(t.variant for side in sides for t in side.timed))
    rows = [row for cell in result.cells for row in _rows(cell, variants)]
    columns = ("situation", "network", *variants, "ratio of the fastest", "of multiply-adds")
    table(result.title, columns, rows, caption="median per batch; *: the side's fastest")
    for line in dict.fromkeys(line for cell in result.cells for line in _remarks(cell)):
        say(f"  {line}")


def _remarks(cell: Cell) -> Iterator[str]:
    """The remarks on a cell besides its figures."""
    if cell.failure:
        yield f"{cell.name}: failed: {cell.failure}"
    for key, side in (("ours", cell.ours), ("theirs", cell.theirs)):
        if f"{key}_evaluations" in cell.facts:
            yield f"{side.name}: {cell.facts[f'{key}_evaluations']} evaluations of its function per forward"
        for t in side.timed:
            if t.failure:
                yield f"{side.name}, {t.variant}: {t.failure}"
            elif t.about:
                yield f"{cell.name}: {side.name}, {t.variant}: {t.about}"


def _rows(cell: Cell, variants: list[str]) -> list[tuple[str, ...]]:
    rows = []
    for side in (cell.ours, cell.theirs):
        times = {t.variant: t.latency.median for t in side.timed if t.latency is not None}
        fastest = side.fastest
        marked = [
            milliseconds(times.get(variant)) + (" *" if fastest and fastest.variant == variant else "")
            for variant in variants
        ]
        rows.append((side.name, *marked))
    macs = cell.facts.get("macs_ratio")
    figures = ["-" if value is None else f"{value:.2f}" for value in (cell.ratio, macs)]
    return [(cell.name, *rows[0], *figures), ("", *rows[1], "", "")]


def _print_memory(result: MemoryTable) -> None:
    def size(count: int | None) -> str:
        return "-" if count is None else f"{count / 2**20:.2f} MiB"

    table(
        result.title,
        ("backend", "K", "kept for the backward", "peak", "kept / one map"),
        [
            (
                row.backend,
                row.steps,
                size(row.kept),
                size(row.peak),
                "-" if row.kept is None else f"{row.kept / result.input_bytes:.1f}",
            )
            for row in result.rows
        ],
    )
    for row in result.rows:
        if row.failure:
            say(f"  {row.backend}, K = {row.steps}: {row.failure}")
