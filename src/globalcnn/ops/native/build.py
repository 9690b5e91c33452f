"""Compile the native kernels with the machine's C++ compiler into one shared library beside this file.

They stand on PyTorch's stable ABI, so the library outlives updates of torch (>= 2.10).
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ...errors import UserError

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
KERNELS = ("kernels_plain", "kernels_avx2", "kernels_avx512")
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fno-tree-loop-distribute-patterns",
)
FLAGS: dict[str, tuple[str, ...]] = {
    "kernels_plain": (),
    "kernels_avx2": ("-mavx2", "-mfma"),
    "kernels_avx512": (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mprefer-vector-width=512",
    ),
}


@functools.cache
def source_hash() -> str:
    """A short hash of the sources and flags: a library of another one is stale."""
    digest = hashlib.sha256(repr((COMMON, FLAGS, platform.machine())).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def library_path() -> Path:
    """Where the library of these sources is, or will be."""
    return HERE / f"kernels-{source_hash()}.so"


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++ on the path."""
    named = os.environ.get("CXX")
    if named:
        return shutil.which(named)
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def build(
    *,
    force: bool = False,
    extra: Sequence[str] = (),
    isas: Sequence[str] = ("avx2", "avx512"),
    to: Path | None = None,
) -> Path:
    """Compile and put the library in its place; nothing is done if it is there already.

    force: compile in any case. For checks of the kernels themselves: extra, further compiler flags
    (sanitizers, faults); isas, for which instruction sets besides plain; to, another place for the library.

    Raises `UserError` if there is no compiler or it fails.
    """
    target = library_path() if to is None else to
    if target.is_file() and not force:
        return target
    if sys.platform == "win32":
        raise UserError("the native kernels build on Linux and macOS; here the eager backend serves")
    compiler = find_compiler()
    if compiler is None:
        wanted = (
            f"CXX={os.environ['CXX']!r} is not there"
            if os.environ.get("CXX")
            else "found none of c++, g++, clang++"
        )
        raise UserError(
            f"no C++ compiler: {wanted}; install one or set CXX. The eager backend serves until then"
        )
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"cannot write to {str(target.parent)!r}, where the native kernels belong")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        part = _compile(compiler, Path(folder), extra, isas)
        os.replace(part, target)
    for stale in target.parent.glob("kernels-*.so"):
        if to is None and stale != target:
            stale.unlink(missing_ok=True)
    return target


def _compile(compiler: str, folder: Path, extra: Sequence[str], isas: Sequence[str]) -> Path:
    root = Path(torch.__file__).resolve().parent
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    wanted = {f"kernels_{isa}" for isa in isas if x86}
    jobs = []
    for name in (*KERNELS, "ops"):
        flags = [*COMMON, *(FLAGS.get(name, ()) if name in wanted else ()), *extra]
        if name == "ops":
            # only what torch 2.10 had, so that one library serves all later versions
            flags += [f"-I{root / 'include'}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        jobs.append([compiler, *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(folder / f"{name}.o")])
    with ThreadPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)) if sys.platform == "linux" else 4
    ) as pool:
        list(pool.map(_call, jobs))
    part = folder / "part.so"
    objects = [str(folder / f"{name}.o") for name in (*KERNELS, "ops")]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu"]
    if sys.platform == "darwin":
        libraries = ["-undefined", "dynamic_lookup"]
    _call([compiler, "-shared", *extra, "-o", str(part), *objects, *libraries])
    return part


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line]
            or done.stderr.splitlines()
            or ["?"]
        )
        raise UserError(f"the C++ compiler failed: {lines[0]} (the command was: {' '.join(command)})")
