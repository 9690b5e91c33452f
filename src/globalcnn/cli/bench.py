"""`globalcnn bench`: runs the benchmarks, which are in the project's checkout, not in the wheel."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..errors import UserError
from .networks import ImageSize

CLONE = "git clone the project, `cd` into it, and run `globalcnn bench` there"


@dataclass(frozen=True)
class Args:
    """Measure layers and networks side by side on this machine, in rounds, in one process.

    Tables: layer (a Global layer against a 3x3 convolution), schemes (gated sweeps against Du Fort-Frankel),
    networks (CIFAR, inference), training (one step), memory (of the layer in training against K), imagenet
    (inference at 224), engines (inference in globalcnn, ONNX Runtime and OpenVINO), solvers (against Neural
    ODE and a reconstruction of MDEQ). With --models instead: those networks at inference, the first against
    each of the others. Each side is measured in several variants, all are shown, and the fastest are
    compared. Writes bench.json with versions and hardware, and a picture of each table. All tables take hours
    on few cores; nothing else should run on the machine. Threads are not bound to cores; where OMP_PROC_BIND
    is set, the output and bench.json say so.

    The benchmarks are in the project's checkout, not in the wheel: run this in a checkout, or from an
    editable install of one.
    """

    tables: tuple[str, ...] = ()
    """Which tables: any of layer, schemes, networks, training, memory,
    imagenet, engines, solvers. Default: all, or with
    --models none of them."""
    models: tuple[str, ...] = ()
    """Two networks or more to compare at inference, each a name as in `globalcnn list` or of timm's,
    my_net.py:build or package.module:function. Default: none."""
    batches: tuple[int, ...] = (1, 64)
    """Batch sizes, for --models."""
    num_classes: int | None = None
    """Size of the output, for --models. Default: each network's own."""
    in_chans: int | None = None
    """Input channels, for --models. Default: each network's own."""
    image_size: ImageSize = None
    """Side of the input, or its height and width, for --models. Default: each network's own."""
    out: Path = Path("runs/bench")
    """Folder for bench.json and the pictures."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the benchmark in --out."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """A smoke run: small shapes, two rounds, nothing compiled. Its times say nothing."""
    rounds: int = 30
    """Timed rounds of each cell; 2 with --quick."""
    seconds: float = 60.0
    """No new round of a cell after that many seconds, but three rounds at least; also the limit of each
    search for the optimised variant, where compiling, once begun, is finished."""
    threads: int | None = None
    """Threads that torch uses. Default: as torch chooses."""


def run(args: Args) -> None:
    """Find the benchmarks and hand over."""
    benchmarks().run(args)


def benchmarks() -> Any:
    """`benchmarks.command` of the checkout that this library runs from, or of the current folder."""
    beside = Path(__file__).resolve().parents[3]  # the root of a checkout, where the install is editable
    return imported(find_checkout(beside, Path.cwd()))


def find_checkout(*folders: Path) -> Path:
    """The first of `folders` that is a checkout of the project; raises `UserError` where none is."""
    for folder in folders:
        if (folder / "benchmarks" / "command.py").is_file() and (folder / "src" / "globalcnn").is_dir():
            return folder
    raise UserError(
        f"the benchmarks are not part of the installed package, and {str(folders[-1])!r} is no checkout of "
        f"the project: {CLONE}"
    )


def imported(root: Path) -> Any:
    """The module `benchmarks.command` of the checkout `root`; raises `UserError` where another hides it."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        module = importlib.import_module("benchmarks.command")
        found = Path(module.__file__ or "")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.command"):
            raise
        found = Path(sys.modules["benchmarks"].__file__ or "") if "benchmarks" in sys.modules else Path()
    if found.resolve().parent != (root / "benchmarks").resolve():
        raise UserError(
            f"another package named benchmarks, {str(found.parent)!r}, hides the project's: {CLONE}"
        )
    return module
