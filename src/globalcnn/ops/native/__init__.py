"""The native CPU backend: C++ kernels, vectorised for AVX-512, AVX2 or plain instructions, chosen as it runs.

`build.py` compiles them (`globalcnn build`); here they are found and loaded, when first used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

from .build import library_path, source_hash

NOT_BUILT = "not built; `globalcnn build` compiles it (needs a C++ compiler)"


def _library() -> Path:
    # GLOBALCNN_NATIVE_LIBRARY: another build of the kernels, for checks of the kernels themselves
    named = os.environ.get("GLOBALCNN_NATIVE_LIBRARY")
    return Path(named) if named else library_path()


@functools.cache
def load() -> str | None:
    """Load the kernels, which registers them for CPU tensors; says why not, or None when they are loaded."""
    if os.environ.get("GLOBALCNN_NATIVE") == "0":
        return "switched off by GLOBALCNN_NATIVE=0"
    if sys.byteorder != "little":
        return "written for little-endian processors"
    path = _library()
    if not path.is_file():
        older = any(path.parent.glob(f"kernels-*{path.suffix}"))
        return f"built from other sources than these ({source_hash()}); build again" if older else NOT_BUILT
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    if not instruction_set():
        return f"GLOBALCNN_ISA={os.environ.get('GLOBALCNN_ISA')!r} cannot run on this processor"
    return None


def instruction_set() -> str:
    """Which kernels run here: "avx512", "avx2" or "plain"; the kernels must be built."""
    library = ctypes.CDLL(str(_library()))
    library.globalcnn_isa.restype = ctypes.c_char_p
    return str(library.globalcnn_isa().decode())
