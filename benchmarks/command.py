"""What `globalcnn bench` does: measures the tables, prints them, writes bench.json and the pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from globalcnn.cli.console import milliseconds, say, table
from globalcnn.cli.options import new_folder
from globalcnn.errors import UserError, unknown_name
from globalcnn.files import write_json

from . import machine
from .pictures import plot_bench
from .results import Cell, Comparison, MemoryTable, Result, Settings
from .tables import TABLES

JSON = "bench.json"


def run(args: Any) -> None:
    """Measure, print, write."""
    words = _checked_words(args)
    folder = new_folder(args.out, overwrite=args.overwrite, ours=[JSON, *(f"{w}.png" for w in TABLES)])
    settings = Settings(args.runs, args.seconds)
    if args.quick:
        settings = Settings(min(args.runs, 2), min(args.seconds, 1.0), quick=True)
    threads = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        _measure(words, settings, folder)
    finally:
        torch.set_num_threads(threads)


def _measure(words: tuple[str, ...], settings: Settings, folder: Path) -> None:
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
    for word in words:
        say(f"{word}: {TABLES[word].about}")
        result = TABLES[word].run(settings, lambda line: say(f"  {line}"))
        _print(result)
        facts["tables"][word] = result.as_dict()
        facts["load_after"] = machine.load_averages()
        write_json(folder / JSON, facts)  # after each table: a long run that is stopped keeps what it has
        plot_bench(result.as_dict(), folder / f"{word}.png")
    say(f"wrote {folder / JSON} and {', '.join(f'{word}.png' for word in words)}")


def _checked_words(args: Any) -> tuple[str, ...]:
    for word in args.tables:
        if word not in TABLES:
            raise unknown_name("table", word, TABLES)
    if args.runs < 1:
        raise UserError(f"--runs {args.runs} must be 1 or more")
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise UserError(f"--seconds {args.seconds} must be a positive number")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads} must be 1 or more")
    return tuple(dict.fromkeys(args.tables)) or tuple(TABLES)


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
    forms = list(dict.fromkeys(t.form for side in sides for t in side.timed))
    rows = [row for cell in result.cells for row in _rows(cell, forms)]
    columns = ("situation", "network", *forms, "best / best", "multiply-adds")
    table(result.title, columns, rows, caption="median per batch; *: the side's best")
    for line in dict.fromkeys(line for cell in result.cells for line in _remarks(cell)):
        say(f"  {line}")


def _remarks(cell: Cell) -> Iterator[str]:
    """What is to be said of a cell beside its figures."""
    if cell.failure:
        yield f"{cell.name}: failed: {cell.failure}"
    for key, side in (("ours", cell.ours), ("theirs", cell.theirs)):
        if f"{key}_evaluations" in cell.facts:
            yield f"{side.name}: {cell.facts[f'{key}_evaluations']} evaluations of its function per forward"
        for t in side.timed:
            if t.failure:
                yield f"{side.name}, {t.form}: {t.failure}"
            elif t.about:
                yield f"{cell.name}: {side.name}, {t.form}: {t.about}"


def _rows(cell: Cell, forms: list[str]) -> list[tuple[str, ...]]:
    rows = []
    for side in (cell.ours, cell.theirs):
        times = {t.form: t.latency.median for t in side.timed if t.latency is not None}
        best = side.best
        marked = [
            milliseconds(times.get(form)) + (" *" if best and best.form == form else "") for form in forms
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
