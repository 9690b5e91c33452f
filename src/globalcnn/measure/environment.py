"""The environment of a measurement: versions and the class of hardware, for the header of result files."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions, platform and class of hardware of this process, ready for JSON.

    Keys: `python`, `torch`, `torchvision`, `timm`, `globalcnn` (versions, None where a package is absent),
    `platform` (system and machine), `cpu` (model as the system reports it), `cores` (of the machine),
    `usable_cores` (that this process may use), `threads` (that torch uses), `simd` (the instruction set that
    torch chose), `openmp` (variables OMP_* that are set, in one line, or None), `gpu` (name of the first GPU
    or None), `gpus` (how many), `cuda` (version torch was built with, or None). Neither the name of the host
    nor of the user is in it.

    >>> sorted(environment())
    ['cores', 'cpu', 'cuda', 'globalcnn', 'gpu', 'gpus', 'openmp', 'platform', 'python', 'simd', 'threads',
     'timm', 'torch', 'torchvision', 'usable_cores']
    """
    gpus = torch.cuda.device_count()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "globalcnn": _version("globalcnn") or getattr(sys.modules.get("globalcnn"), "__version__", None),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "openmp": " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("OMP_")) or None,
        "gpu": torch.cuda.get_device_name(0) if gpus else None,
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The model of the CPU as the operating system reports it; the kind of machine where it reports none."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use, where the system says so (not on macOS and Windows); else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
