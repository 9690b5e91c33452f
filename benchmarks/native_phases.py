"""Where the time of the native layer goes: the phases of its kernel, on one thread.

    python -m benchmarks.native_phases [--out results/bench/phases.json] [--isa avx2]

Builds the kernels once more with counters in them (a minute), runs a Global layer at inference on the shapes of
`globalcnn bench`, in both memory formats, and writes what each phase takes in nanoseconds per vector of elements.
The first three shapes are measured again with other choices compiled in, in processes of their own.
The arithmetic roofline is measured too: the same number of multiply-adds in a matrix product, measured in the same
process. x86 processors alone have the clock that is read. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.native_patches import PHASE_TIMERS, SINGLE_CHANNELS, Patch, apply, vectors_at_once

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("weights", "read", "convolutions", "halos", "steps", "write")
SHAPES = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (16, 24, 56, 56), (16, 96, 14, 14))
STEPS = (1, 5)
RUNS = 100


# other choices, and the patches of the sources that make them
VARIANTS: dict[str, tuple[Patch, ...]] = {
    "as it is": (),
    "two vectors at once": (vectors_at_once(2),),
    "four vectors at once": (vectors_at_once(4),),
    "planes of one channel": (SINGLE_CHANNELS,),
}


def main() -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / Path("results/bench/phases.json"))
    parser.add_argument(
        "--isa", default=None, help="avx512, avx2 or plain; default: the best of the processor"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="of each layer; the least time counts")
    parser.add_argument(
        "--library", type=Path, default=None, help=argparse.SUPPRESS
    )  # of the processes of their own
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs {args.runs} must be 1 or more")
    if args.isa is not None and args.isa not in ("avx512", "avx2", "plain"):
        parser.error(f"--isa {args.isa!r} must be avx512, avx2 or plain")
    if args.library is not None:
        measure(args.library, args.out, args.runs, args.shapes)
        return
    if args.out.exists():
        print(f"{args.out} will be replaced")
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, patches in VARIANTS.items():
            print(f"== {name}")
            facts[name] = in_a_process(Path(folder), patches, args, len(SHAPES) if not patches else 3)
    from globalcnn.files import write_json

    rows = facts["as it is"].pop("rows")
    others = {name: content["rows"] for name, content in facts.items() if name != "as it is"}
    write_json(args.out, {**facts["as it is"], "rows": rows, "variants": others})
    print(f"wrote {args.out}")


def in_a_process(
    folder: Path, patches: Sequence[Patch], args: argparse.Namespace, shapes: int
) -> dict[str, Any]:
    """Compile, and measure in a process of its own: a library once loaded stays."""
    from globalcnn.ops.native import instruction_set, load
    from globalcnn.ops.native.build import build

    isa = args.isa or (instruction_set() if load() is None else "avx2")
    print("compiling the kernels with counters (up to a minute)")
    sources = apply((*PHASE_TIMERS, *patches), Path(tempfile.mkdtemp(dir=folder)) / "csrc")
    library = build(sources=sources, isas=(isa,), to=folder / "phases.so", force=True)
    words = [
        sys.executable,
        "-m",
        "benchmarks.native_phases",
        "--library",
        str(library),
        "--out",
        str(folder / "rows.json"),
    ]
    environment = {**os.environ, "GLOBALCNN_NATIVE_LIBRARY": str(library), "GLOBALCNN_ISA": isa}
    subprocess.run(
        [*words, "--runs", str(args.runs), "--shapes", str(shapes)], env=environment, cwd=ROOT, check=True
    )
    content: dict[str, Any] = json.loads((folder / "rows.json").read_text())
    return content


def measure(library: Path, out: Path, runs: int, shapes: int) -> None:
    """All shapes, formats and numbers of steps."""
    import torch

    from benchmarks.machine import keep_memory
    from globalcnn.files import write_json
    from globalcnn.measure import environment
    from globalcnn.ops.native import instruction_set, load

    torch.set_num_threads(1)
    allocator = keep_memory()
    refused = load()
    if refused is not None:
        raise SystemExit(refused)
    counters = ctypes.CDLL(str(library))
    counters.globalcnn_phases.restype = ctypes.POINTER(ctypes.c_uint64 * 8)
    ticks = counters.globalcnn_phases().contents
    lanes = {"avx512": 16, "avx2": 8, "plain": 4}[instruction_set()]
    nanoseconds = tick_length(ticks)
    rows = []
    for shape in SHAPES[:shapes]:
        for steps in STEPS:
            for name, memory in (
                ("contiguous", torch.contiguous_format),
                ("channels-last", torch.channels_last),
            ):
                row = one(shape, steps, memory, ticks, nanoseconds, lanes, runs)
                rows.append({"shape": shape, "steps": steps, "format": name, **row})
                words = "  ".join(f"{k} {v:.1f}" for k, v in row["phases"].items())
                print(
                    f"{'x'.join(map(str, shape))} K {steps} {name}: {words}  whole call {row['all']:.1f} ns"
                )
    facts = {
        "what": "nanoseconds per vector of `lanes` elements, least of the runs, one thread",
        "lanes": lanes,
        "native": instruction_set(),
        "runs": runs,
        "seed": 0,
        "allocator": allocator,
        "environment": environment(),
        "rows": rows,
    }
    write_json(out, facts)


def one(
    shape: tuple[int, ...], steps: int, memory: Any, ticks: Any, nanoseconds: float, lanes: int, runs: int
) -> dict[str, Any]:
    """One layer: each phase's least time over the runs, the layer's own, and that of a matrix product."""
    import torch

    from globalcnn import PDE, GlobalLayer
    from globalcnn.measure import count

    torch.manual_seed(0)
    layer = GlobalLayer(shape[1], PDE(steps=steps)).eval()
    x = torch.randn(shape).contiguous(memory_format=memory)
    counts = count(layer, shape[1:])
    product = max(1, round(shape[0] * counts.macs / 512**2))
    left, right, to = torch.randn(product, 512), torch.randn(512, 512), torch.empty(product, 512)
    vectors = x.numel() / lanes
    phases, whole, arithmetic = [], [], []
    with torch.inference_mode():
        for _ in range(runs + 3):
            for i in range(8):
                ticks[i] = 0
            start = time.perf_counter()
            layer(x)
            whole.append(time.perf_counter() - start)
            phases.append([ticks[i] * nanoseconds / vectors for i in range(len(PHASES))])
            start = time.perf_counter()
            torch.mm(left, right, out=to)
            arithmetic.append(time.perf_counter() - start)
    least = [min(column) for column in zip(*phases[3:], strict=True)]
    return {
        "phases": dict(zip(PHASES, least, strict=True)),
        "all": 1e9 * min(whole[3:]) / vectors,
        "arithmetic": 1e9 * min(arithmetic[3:]) / vectors,
    }


def tick_length(ticks: Any) -> float:
    """Nanoseconds of a tick: a long call, nearly all of which is in the phases, against the time it takes."""
    import torch

    from globalcnn import PDE, GlobalLayer

    layer, x = GlobalLayer(16, PDE(steps=20)).eval(), torch.randn(64, 16, 32, 32)
    lengths = []
    with torch.inference_mode():
        for _ in range(20):
            before = sum(ticks)
            start = time.perf_counter()
            layer(x)
            lengths.append(1e9 * (time.perf_counter() - start) / (sum(ticks) - before))
    return float(statistics.median(lengths))


if __name__ == "__main__":
    main()
