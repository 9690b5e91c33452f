"""The native CPU backend: C++ kernels for AVX-512, AVX2 or plain instructions, chosen at run time.

`load` finds the compiled library (`library.py`) when it is first needed. Where there is none it is compiled
once into the user's cache (`build.py`), with one line of notice; GLOBALCNN_BUILD=0 leaves that to
`globalcnn build`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import threading
from pathlib import Path

import torch

from ...errors import UserError
from . import build as compiling
from .library import cached_path, find

NOT_BUILT = "not built; `globalcnn build` compiles it (needs a C++ compiler)"
_LOGGER = logging.getLogger("globalcnn")
_LOCK = threading.Lock()


def load() -> str | None:
    """Load the kernels, which registers them for CPU tensors; says why not, or None when they are loaded.

    Without a library they are compiled first (about a minute, once), unless GLOBALCNN_BUILD=0, no compiler is
    there, or GLOBALCNN_NATIVE=0 switches the backend off.
    """
    with _LOCK:
        return _load()


@functools.cache
def _load() -> str | None:
    if os.environ.get("GLOBALCNN_NATIVE") == "0":
        return "switched off by GLOBALCNN_NATIVE=0"
    if sys.byteorder != "little":
        return "written for little-endian processors"
    path, fault = find()
    if path is None:
        path, reason = _built_now(fault)
        if path is None:
            return reason
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    if not _instruction_set(path):
        return f"GLOBALCNN_ISA={os.environ.get('GLOBALCNN_ISA')!r} cannot run on this processor"
    return None


def _built_now(fault: str | None) -> tuple[Path | None, str]:
    """Compile into the user's cache, or say why not; fault: what is wrong with the library that is there."""
    if fault is not None and fault.startswith("GLOBALCNN_NATIVE_LIBRARY"):
        return None, fault
    again = "" if fault is None else f"{fault}; "
    if os.environ.get("GLOBALCNN_BUILD") == "0":
        return None, again + NOT_BUILT if fault is None else again + "`globalcnn build` compiles it again"
    if compiling.find_compiler() is None:
        return None, again + NOT_BUILT
    try:
        place = cached_path()
        _LOGGER.warning(
            "globalcnn: %scompiling the native CPU kernels, once, about a minute, into %s",
            again,
            place.parent,
        )
        return compiling.build(), ""
    except UserError as error:
        return None, f"{again}`globalcnn build` failed: {error}"


def library_path() -> Path:
    """The library that is loaded, or would be.

    Raises `UserError` where there is none.
    """
    path, fault = find()
    if path is None:
        raise UserError(f"native kernels: {fault or NOT_BUILT}")
    return path


def instruction_set() -> str:
    """Which kernels run here: "avx512", "avx2" or "plain"; the kernels must be built."""
    return _instruction_set(library_path())


def _instruction_set(path: Path) -> str:
    loaded = ctypes.CDLL(str(path))
    loaded.globalcnn_isa.restype = ctypes.c_char_p
    return str(loaded.globalcnn_isa().decode())
