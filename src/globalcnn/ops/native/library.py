"""Where the compiled kernels are, and whether a file is a complete library of these sources.

A library is looked for in three places: the file that GLOBALCNN_NATIVE_LIBRARY names; this package, where
a wheel installs it; and the user's cache, where `build` puts it. Its name holds a hash of the sources and
compiler flags, so a library of other sources is never loaded. Its last bytes are a checksum of all bytes
before them, which the operating system's loader ignores: loading a truncated file would crash the process.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
import struct
import sys
from pathlib import Path

from ...errors import UserError

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
SUFFIX = ".so"
SEAL = b"globalcnn-sha256"  # followed by the digest of all bytes before it

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
    """A short hash of the sources, the flags and the machine's architecture."""
    digest = hashlib.sha256(repr((COMMON, FLAGS, platform.machine())).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def file_name() -> str:
    """The library's name, the same in a wheel and in a cache."""
    return f"kernels-{source_hash()}{SUFFIX}"


def beside(library: Path) -> Path:
    """Where `build` puts the same kernels for ONNX Runtime alone, without PyTorch: beside its library."""
    return library.with_name(f"onnxruntime-{source_hash()}{SUFFIX}")


def packaged_path() -> Path:
    """Where a wheel installs the library."""
    return HERE / "lib" / file_name()


def cache_folder() -> Path:
    """The user's cache: $GLOBALCNN_CACHE, else globalcnn/ in $XDG_CACHE_HOME or ~/.cache.

    On macOS ~/Library/Caches instead of ~/.cache.

    Raises `UserError` where there is no home folder to put it in.
    """
    named = os.environ.get("GLOBALCNN_CACHE")
    if named:
        return Path(named).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "globalcnn"
    try:
        home = Path.home()
    except RuntimeError:
        raise UserError(
            "there is no home folder for the native kernels; "
            "set GLOBALCNN_CACHE to a folder that can be written"
        ) from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "globalcnn"


def cached_path() -> Path:
    """Where `build` puts the library."""
    return cache_folder() / "native" / file_name()


def find() -> tuple[Path | None, str | None]:
    """(a valid library, None), or (None, why the one found cannot be used), or (None, None)."""
    named = os.environ.get("GLOBALCNN_NATIVE_LIBRARY")
    if named:
        path = Path(named)
        fault = damage(path, sealed=False)
        return (path, None) if fault is None else (None, f"GLOBALCNN_NATIVE_LIBRARY={named!r}: {fault}")
    if packaged_path().is_file():
        fault = damage(packaged_path(), sealed=True)
        return (
            (packaged_path(), None) if fault is None else (None, f"{packaged_path()}: {fault}; install again")
        )
    try:
        path = cached_path()
    except UserError:
        return None, None
    if not path.is_file():
        return None, None
    fault = damage(path, sealed=True) or _not_ours(path)
    return (path, None) if fault is None else (None, f"{path}: {fault}")


def find_beside() -> Path | None:
    """The kernels for ONNX Runtime alone, where a wheel or `build` put them, whole; or None."""
    packaged = beside(packaged_path())
    if damage(packaged, sealed=True) is None:
        return packaged
    try:
        path = beside(cached_path())
    except UserError:
        return None
    return path if (damage(path, sealed=True) or _not_ours(path)) is None else None


def damage(path: Path, *, sealed: bool) -> str | None:
    """What is wrong with a library file, or None. sealed: it must end with a checksum of all before it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a plain file"
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if sealed:
        body, mark, digest = content[: -len(SEAL) - 32], content[-len(SEAL) - 32 : -32], content[-32:]
        if mark != SEAL or hashlib.sha256(body).digest() != digest:
            return "damaged or cut short (its checksum does not match)"
        return None
    return _cut_short(content)


def seal(path: Path) -> None:
    """Append the checksum to a library that the compiler has just written."""
    content = path.read_bytes()
    with path.open("ab") as opened:
        opened.write(SEAL + hashlib.sha256(content).digest())


def _cut_short(content: bytes) -> str | None:
    """For libraries without a checksum: an ELF file of 64 bits is whole up to its last section header."""
    if sys.platform != "linux":
        return None if content else "empty"
    if content[:5] != b"\x7fELF\x02":
        return "not a library of this system (no 64-bit ELF file)"
    if len(content) < 64:
        return "cut short"
    (offset,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    return "cut short" if offset + size * count > len(content) else None


def _not_ours(path: Path) -> str | None:
    """A library is code: it must belong to this user or to root, in a folder that nobody else can write."""
    if not hasattr(os, "geteuid"):
        return None
    for each in (path, path.parent):
        facts = each.stat()
        if facts.st_uid not in (0, os.geteuid()):
            return f"{str(each)!r} belongs to another user, so it is not loaded"
        if facts.st_mode & stat.S_IWOTH:
            return f"{str(each)!r} can be written by every user, so it is not loaded"
    return None
