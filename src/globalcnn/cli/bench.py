"""`globalcnn bench`: speed and memory side by side on this machine."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from ..bench import TABLES, Comparison, MemoryTable, Result, Settings
from ..bench.results import Cell
from ..errors import UserError, unknown_name
from ..files import write_json
from ..measure import environment
from ..ops import BACKENDS, native
from ..viz import plot_bench
from .console import milliseconds, say, table
from .options import new_folder

JSON = "bench.json"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
WORDS = tuple(TABLES)


@dataclass(frozen=True)
class Args:
    """Measure layers and networks with Global layers against those without, in one process and in turn.

    Tables: layer (a Global layer against a 3x3 convolution), networks (CIFAR, inference), training (one
    step), memory (of the layer in training against K), imagenet (inference at 224), solvers (against Neural
    ODE and a reconstruction of MDEQ). Each side is measured in several forms, all are shown, and the best
    are compared. Writes bench.json with versions and hardware, and a picture of each table. All tables take
    hours on few cores; nothing else should run on the machine.
    """

    tables: tuple[str, ...] = WORDS
    """Which tables: any of layer, networks, training, memory, imagenet, solvers."""
    out: Path = Path("runs/bench")
    """Folder for bench.json and the pictures."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the benchmark in --out."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """A smoke run: small shapes, two rounds, nothing compiled. Its times say nothing."""
    runs: int = 30
    """Timed rounds of each cell; 2 with --quick."""
    seconds: float = 60.0
    """No new round of a cell after that many seconds, but three rounds at least; also the limit of each
    search for the optimised form, where compiling, once begun, is finished."""
    threads: int | None = None
    """Threads that torch uses. Default: as torch chooses."""


def run(args: Args) -> None:
    """Measure, print, write."""
    words = _checked_words(args)
    folder = new_folder(args.out, overwrite=args.overwrite, ours=[JSON, *(f"{w}.png" for w in WORDS)])
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


def keep_memory() -> str:
    """Have the C library keep freed memory for the next call, where it is glibc; says what was done.

    Fresh pages of a large tensor cost more than the arithmetic on it, at every call.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        most = 1 << 30
        done = libc.mallopt(_MMAP_THRESHOLD, most) and libc.mallopt(_TRIM_THRESHOLD, 2 * most - 1)
    except (OSError, AttributeError):
        done = False
    return "warm: freed memory is kept (mallopt)" if done else "as the system has it"


def _measure(words: tuple[str, ...], settings: Settings, folder: Path) -> None:
    load = _load()
    loaded = load is not None and load[0] > max(0.5, 0.1 * (os.cpu_count() or 1))
    if loaded:
        say(f"warning: other work runs on this machine (load {load}); times will be too long and unsteady")
    facts: dict[str, Any] = {
        "settings": asdict(settings),
        "quick": settings.quick,
        "load_before": load,
        "loaded": loaded,
        "native": BACKENDS["native"].unavailable() or native.instruction_set(),
        "seed": 0,  # of the untrained weights and the images
        "allocator": keep_memory(),
        "environment": environment(),
        "tables": {},
    }
    say(f"{torch.get_num_threads()} threads; native kernels: {facts['native']}")
    for word in words:
        say(f"{word}: {TABLES[word].about}")
        result = TABLES[word].run(settings, lambda line: say(f"  {line}"))
        _print(result)
        facts["tables"][word] = result.as_dict()
        facts["load_after"] = _load()
        write_json(folder / JSON, facts)  # after each table: a long run that is stopped keeps what it has
        plot_bench(result.as_dict(), folder / f"{word}.png")
    say(f"wrote {folder / JSON} and {', '.join(f'{word}.png' for word in words)}")


def _checked_words(args: Args) -> tuple[str, ...]:
    for word in args.tables:
        if word not in TABLES:
            raise unknown_name("table", word, TABLES)
    if not args.tables:
        raise UserError(f"--tables needs one word or more of: {', '.join(TABLES)}")
    if args.runs < 1:
        raise UserError(f"--runs {args.runs} must be 1 or more")
    if not (math.isfinite(args.seconds) and args.seconds > 0):
        raise UserError(f"--seconds {args.seconds} must be a positive number")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads} must be 1 or more")
    return tuple(dict.fromkeys(args.tables))


def _load() -> list[float] | None:
    """Load averages of 1, 5 and 15 minutes; None where the system has none."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


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
