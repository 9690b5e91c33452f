"""Compares the speed of two checkouts, before and after a change, in one run.

    python -m benchmarks.before_after --before ../before --tables layer training --out results/bench/rewrite

Each round starts one process with each checkout, in an order that reverses from round to round; each has its own
library and its own built kernels (`python -m globalcnn build` in each first). A ratio is that of the two
processes of one round; its median and quartiles over the rounds are told. Cells called control run the same
code on both sides (a convolution, ResNet-32): how far their ratio is from 1 is how far the machine is to be
trusted. Threads are not bound to cores. Nothing else should run; a full run takes about eight minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from globalcnn.cli.console import milliseconds, say, table
from globalcnn.errors import UserError
from globalcnn.files import write_json

from . import machine
from .pages import ROOT

TABLES = ("layer", "training")
SHAPES = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (16, 24, 56, 56), (16, 96, 14, 14))
LEAST = 3  # rounds, however long they take
SIDES = ("before", "after")
# as `machine.keep_memory`: fresh pages of a large tensor would cost more than the arithmetic on it
KEEP_MEMORY = f"glibc.malloc.mmap_threshold={1 << 30}:glibc.malloc.trim_threshold={(1 << 31) - 1}"


def worker_settings(args: argparse.Namespace, *, measure: bool = True) -> dict[str, Any]:
    """What `one_side` is told."""
    quick = args.quick
    return {
        "measure": measure,
        "tables": args.tables,
        "threads": args.threads,
        "burst": 0.0 if quick else args.burst,
        "shapes": [(2, 16, 8, 8)] if quick else SHAPES,
        "steps": [1] if quick else [1, 5],
        "networks": ["resnet_global_tiny_cifar"] if quick else ["resnet_global_cifar", "resnet32_cifar"],
        "batch": 4 if quick else 128,
    }


def one_side(checkout: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a process with the library and the kernels of `checkout` found."""
    code = (ROOT / "benchmarks" / "one_side.py").read_text(encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "GLOBALCNN_NATIVE_LIBRARY"}
    environment["PYTHONPATH"] = str(checkout / "src")
    environment["GLIBC_TUNABLES"] = KEEP_MEMORY
    words = [sys.executable, "-c", code, json.dumps(settings)]
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"the process of {str(checkout)!r} ended with status {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def checked(checkout: Path) -> Path:
    """A checkout of the project, or a `UserError`."""
    if not (checkout / "src" / "globalcnn" / "__init__.py").is_file():
        raise UserError(f"{str(checkout)!r} is no checkout of the project: it has no src/globalcnn")
    return checkout.resolve()


def about(checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Commit, kernels and torch of a side; raises `UserError` where its kernels cannot run."""
    told = one_side(checkout, worker_settings(args, measure=False))["about"]
    if Path(told["library"]).parents[2] != checkout:
        raise UserError(f"{str(checkout)!r}: the library came from {told['library']!r}")
    if not told["available"]:
        raise UserError(
            f"{str(checkout)!r}: {told['native']}; build its kernels first: PYTHONPATH=src "
            "python -m globalcnn build"
        )
    return {"commit": commit(checkout), **{k: told[k] for k in ("torch", "threads", "native")}}


def commit(checkout: Path) -> str | None:
    """The commit that is checked out, with "+" if files differ from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def measured(checkouts: Mapping[str, Path], args: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """Seconds of every cell on both sides, for each round."""
    rounds: list[dict[str, dict[str, float]]] = []
    settings, start = worker_settings(args), time.perf_counter()
    while len(rounds) < args.rounds:
        order = SIDES if len(rounds) % 2 == 0 else SIDES[::-1]
        found = {side: one_side(checkouts[side], settings)["seconds"] for side in order}
        rounds.append(found)
        passed = time.perf_counter() - start
        say(f"  round {len(rounds)} of {args.rounds}, {passed:.0f} s")
        if passed >= args.seconds and len(rounds) >= min(LEAST, args.rounds):
            break
    return rounds


def compared(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Every cell: medians of both sides, and median and quartiles of the ratio after / before.

    >>> rounds = [{"before": {"layer: x": 2.0}, "after": {"layer: x": s}} for s in (1.0, 2.0, 4.0)]
    >>> cell, = compared(rounds)
    >>> cell["name"], cell["before"], cell["after"], cell["ratio"], cell["rounds"]
    ('layer: x', 2.0, 2.0, 1.0, 3)
    """
    cells = []
    for name in rounds[0]["before"]:
        each = {side: [found[side][name] for found in rounds] for side in SIDES}
        ratios = [a / b for a, b in zip(each["after"], each["before"], strict=True)]
        lower, ratio, upper = (
            statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        cells.append(
            {
                "name": name,
                **{side: statistics.median(each[side]) for side in SIDES},
                "ratio": ratio,
                "lower": lower,
                "upper": upper,
                "rounds": len(rounds),
            }
        )
    return cells


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Geometric mean of the ratios of each table.

    >>> cells = [{"name": "layer: a", "ratio": 0.5}, {"name": "layer: b", "ratio": 2.0}]
    >>> summary(cells)
    {'layer': 1.0}
    """
    by_table: dict[str, list[float]] = {}
    for cell in cells:
        by_table.setdefault(cell["name"].split(":")[0], []).append(math.log(cell["ratio"]))
    return {word: round(math.exp(statistics.fmean(logs)), 4) for word, logs in by_table.items()}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="checkout of the state before")
    parser.add_argument("--after", type=Path, default=ROOT, help="checkout of the state after; default: this")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--out", type=Path, required=True, help="folder for before_after.json")
    parser.add_argument("--overwrite", action="store_true", help="replace a before_after.json in --out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=540.0, help="no new round after so many")
    parser.add_argument("--burst", type=float, default=0.1, help="seconds of calls of a cell in a round")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a smoke run whose times say nothing")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    for name, value in (
        ("rounds", args.rounds >= 1),
        ("seconds", args.seconds > 0),
        ("burst", args.burst > 0),
    ):
        if not value:
            raise UserError(f"--{name} {getattr(args, name)} must be above 0")
    file = args.out / "before_after.json"
    if file.exists() and not args.overwrite:
        raise UserError(f"{str(file)!r} is there already: choose another --out, or give --overwrite")
    checkouts = {"before": checked(args.before), "after": checked(args.after)}
    sides = {side: about(checkouts[side], args) for side in SIDES}
    load = machine.load_averages()
    if machine.is_loaded(load):
        say(f"warning: other work runs on this machine (load {load}); ratios will be unsteady")
    say(f"{sides['after']['threads']} thread(s); {machine.binding()}")
    cells = compared(measured(checkouts, args))
    means = summary(cells)
    show(cells, means)
    write_json(
        file,
        {
            "what": "seconds of a call before and after; ratio: after / before within a round, median and quartiles",
            "quick": args.quick,
            "settings": {"tables": args.tables, "seconds": args.seconds, "burst": args.burst},
            "load_before": load,
            "loaded": machine.is_loaded(load),
            "load_after": machine.load_averages(),
            **machine.facts(seed=0),
            **sides,
            "means": means,
            "cells": cells,
        },
    )
    say(f"wrote {file}")


def show(cells: Sequence[Mapping[str, Any]], means: Mapping[str, float]) -> None:
    """Print the table of cells, and the means."""
    rows = [
        (
            cell["name"],
            *(milliseconds(cell[side]) for side in SIDES),
            f"{cell['ratio']:.3f}",
            f"{cell['lower']:.3f} to {cell['upper']:.3f}",
        )
        for cell in cells
    ]
    columns = ("cell", "before", "after", "after / before", "quartiles")
    table(
        "before and after",
        columns,
        rows,
        caption=f"medians of {cells[0]['rounds']} round(s); below 1: faster",
    )
    for word, mean in means.items():
        say(f"  {word}: geometric mean of the ratios {mean:.3f}")


def main(words: Sequence[str] | None = None) -> int:
    """The exit status."""
    args = arguments(words)
    try:
        run(args)
    except UserError as error:
        print(f"before_after: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
