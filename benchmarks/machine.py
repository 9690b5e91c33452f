"""What a benchmark ran on, said in one way by all of them: versions, hardware, threads, load, allocator."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from globalcnn.measure import environment
from globalcnn.ops import BACKENDS, native

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


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


def binding() -> str:
    """Whether OpenMP binds its threads to cores; no benchmark here sets it.

    Bound threads help one engine and hurt another, so a ratio between engines is meant for unbound ones.
    """
    value = os.environ.get("OMP_PROC_BIND", "")
    if value.lower() in ("", "false", "0"):
        return "threads are not bound to cores"
    return f"threads are bound to cores: OMP_PROC_BIND={value}"


def load_averages() -> list[float] | None:
    """Load averages of 1, 5 and 15 minutes; None where the system has none."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def is_loaded(load: list[float] | None) -> bool:
    """Whether other work runs here that makes times too long and unsteady."""
    return load is not None and load[0] > max(0.5, 0.1 * (os.cpu_count() or 1))


def native_kernels() -> str:
    """The instruction set of the native kernels, or why they cannot run."""
    return BACKENDS["native"].unavailable() or native.instruction_set()


def facts(*, seed: int | None) -> dict[str, Any]:
    """What every file of results says of its machine. seed: of weights and inputs, None where none is drawn."""
    return {
        "seed": seed,
        "native": native_kernels(),
        "binding": binding(),
        "environment": environment(),
    }
