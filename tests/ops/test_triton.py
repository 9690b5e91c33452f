"""The Triton backend: its kernels in Triton's interpreter, in its compiler, and on a GPU if there is one.

Each in a separate process, since Triton decides once, at its import, whether it interprets.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from globalcnn.ops import triton as backend

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def python(*arguments, **environment):
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PYTEST_", "TRITON_"))}
    found = subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **environment},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def passes(file, *options, **environment):
    out = python("-m", "pytest", "-p", "no:xdist", "-q", str(HERE / file), *options, **environment)
    assert " passed" in out


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("which", ["solve or steps or agree", "not (solve or steps or agree)"])
def test_in_the_interpreter(which):
    passes("triton_checks.py", "-k", which, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_the_sweeps_in_the_interpreter():
    passes("triton_sweep_checks.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_through_the_compiler(tmp_path):
    passes("triton_compiles.py", TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    passes("triton_checks.py")
    passes("triton_sweep_checks.py")


def test_the_package_alone_touches_nothing():
    python(
        "-c",
        "import sys, torch\n"
        "import globalcnn.ops.triton\n"
        "loaded = [name for name in sys.modules if name.startswith('globalcnn.ops.triton')]\n"
        "assert loaded == ['globalcnn.ops.triton'], loaded\n"
        "assert not torch.cuda.is_initialized()\n",
    )


def test_it_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert backend.unavailable() == "no CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in backend.unavailable()
