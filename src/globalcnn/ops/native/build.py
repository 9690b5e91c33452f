"""Compile the native kernels with the machine's C++ compiler into one shared library in the user's cache.

They use PyTorch's stable ABI, so one library works with every Python and every torch >= 2.10.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ...errors import UserError
from .library import COMMON, FLAGS, SOURCES, beside, cached_path, damage, find_beside, seal

KERNELS = ("kernels_plain", "kernels_avx2", "kernels_avx512")
ENGINE = "onnxruntime"  # registers the operator of ONNX Runtime, and needs no PyTorch
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # only what torch 2.10 had


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
    sources: Path = SOURCES,
) -> Path:
    """Compile the library into its place, unless it is there already; return its path. Beside it comes
    the one for ONNX Runtime alone, of the same kernels (`library.beside`).

    force: compile in any case. to: another place than the user's cache. For checks of the kernels
    themselves: extra, further compiler flags (sanitizers); isas, for which instruction sets besides plain;
    sources, another folder of sources (a patched copy).

    Two builds at once wait for each other, and the second finds the library of the first.

    Raises `UserError` if there is no compiler, if it fails, or if the place cannot be written.
    """
    target = cached_path() if to is None else to
    if not force and damage(target, sealed=True) is None:
        return target
    compiler = _compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / ".build.lock"):
            if not force and damage(target, sealed=True) is None:  # another process has just built it
                return target
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
                part, engine_part = _compile(compiler, sources, Path(folder), extra, isas)
                for made, place in ((engine_part, beside(target)), (part, target)):
                    seal(made)
                    os.replace(made, place)
    except OSError as error:
        raise UserError(
            f"cannot write the native kernels to {str(target.parent)!r} ({error.strerror or error}); "
            "set GLOBALCNN_CACHE to a folder that can be written"
        ) from error
    return target


def engine_library() -> Path:
    """The kernels for ONNX Runtime alone (`SessionOptions.register_custom_ops_library`), compiled if need be.

    Raises `UserError` as `build`.
    """
    found = find_beside()
    return beside(build(force=True)) if found is None else found


def _compiler() -> str:
    if sys.platform == "win32":
        raise UserError("the native kernels build on Linux and macOS; here the eager backend serves")
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        wanted = f"CXX={named!r} is not there" if named else "found none of c++, g++, clang++"
        raise UserError(
            f"no C++ compiler: {wanted}; install one or set CXX. The eager backend serves until then"
        )
    return compiler


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock where the file system has locks; elsewhere two builds do the same work twice."""
    import fcntl

    with path.open("w") as opened:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _compile(
    compiler: str, sources: Path, folder: Path, extra: Sequence[str], isas: Sequence[str]
) -> tuple[Path, Path]:
    """The library for PyTorch, and that for ONNX Runtime alone."""
    root = Path(torch.__file__).resolve().parent
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    wanted = {f"kernels_{isa}" for isa in isas if x86}
    others = sorted(path.stem for path in sources.glob("*.cpp") if path.stem not in KERNELS)
    jobs, objects = [], {}
    for name in (*KERNELS, *others):
        flags = [*COMMON, *(FLAGS.get(name, ()) if name in wanted else ()), *extra]
        if name in others and name != ENGINE:  # these use PyTorch's headers
            flags += [f"-I{root / 'include'}", TORCH_TARGET]
        made = folder / f"{name}.o"
        objects[name] = made
        jobs.append(([compiler, *flags, "-c", str(sources / f"{name}.cpp"), "-o", str(made)], made))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 4
    with ThreadPoolExecutor(max_workers=cores) as pool:
        list(pool.map(lambda job: _call(*job), jobs))
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu"]
    if sys.platform == "darwin":
        libraries = ["-undefined", "dynamic_lookup"]
    own = [objects[name] for name in (*KERNELS, ENGINE)]
    part, engine_part = folder / "part.so", folder / "engine_part.so"
    _link(compiler, [*extra, *map(str, objects.values()), *libraries], part)
    _link(compiler, [*extra, *map(str, own)], engine_part)
    return part, engine_part


def _link(compiler: str, words: Sequence[str], made: Path) -> None:
    _call([compiler, "-shared", "-o", str(made), *words], made)
    fault = damage(made, sealed=False)
    if fault is not None:
        raise UserError(f"the C++ compiler {compiler!r} made no library of this system: {fault}")


def _call(command: Sequence[str], made: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UserError(f"the C++ compiler cannot be run: {error}") from error
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line]
            or done.stderr.splitlines()
            or [f"exit status {done.returncode}"]
        )
        raise UserError(f"the C++ compiler failed: {lines[0]} (the command was: {' '.join(command)})")
    if not made.is_file():
        raise UserError(
            f"the C++ compiler {command[0]!r} succeeded but wrote nothing; set CXX to a C++ compiler"
        )
