"""The cost of a step of the native kernels, compared with the cost of its reads and writes alone.

    python -m benchmarks.native_step [--out results/bench/step.json]

Compiles native_step.cpp, which runs the kernels' loops on planes that stay in the caches, for maps of 4 x 4 to
56 x 56, and writes nanoseconds per vector of elements: the four convolutions, the only step of K = 1, the first of
several steps (it computes and stores the coefficients), a further step, and a loop that reads and writes what a further
step does but computes next to nothing. Also measured are alternatives that were tried: the only step two rows at a time, and the
coefficients in planes of their own, which a pass before the first step fills. One thread; x86 with AVX2 or AVX-512. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from globalcnn.files import write_json
from globalcnn.measure import environment
from globalcnn.ops.native import instruction_set, load
from globalcnn.ops.native.build import find_compiler
from globalcnn.ops.native.library import COMMON, FLAGS

BYTES = {"avx512": 64, "avx2": 32}
ROUNDS = 5
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Compile, run, keep the least, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench/step.json"))
    args = parser.parse_args()
    refused = load()
    isa, compiler = instruction_set(), find_compiler()
    if refused is not None or compiler is None or isa not in BYTES:
        parser.error(refused or f"needs a C++ compiler and AVX2 or AVX-512, here are {compiler} and {isa}")
    if args.out.exists():
        print(f"{args.out} will be replaced")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "step"
        macros = [f"-DVECTOR_BYTES={BYTES[isa]}", f'-DISA_NAME="{isa}"', f"-DISA_TABLE=kernels_{isa}"]
        words = [compiler, *COMMON, *FLAGS[f"kernels_{isa}"], *macros, str(HERE / "native_step.cpp")]
        print("compiling (half a minute)")
        subprocess.run([*words, "-o", str(program)], check=True)
        rounds = []
        for _ in range(ROUNDS):
            told = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
            rounds.append([json.loads(line) for line in told.splitlines()])
    rows = [{key: min(row[key] for row in same) for key in same[0]} for same in zip(*rounds, strict=True)]
    for row in rows:
        print("  ".join(f"{key} {value:g}" for key, value in row.items()))
    write_json(
        args.out,
        {
            "what": "nanoseconds per vector of `lanes` elements, least of many rounds in several processes, one thread; "
            "bytes: of one plane",
            "lanes": BYTES[isa] // 4,
            "native": isa,
            "rounds": ROUNDS,
            "seed": None,
            "environment": environment(),
            "rows": rows,
        },
    )
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
