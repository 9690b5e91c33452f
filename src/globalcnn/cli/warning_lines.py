"""Warnings as the command line shows them: this library's in one line each, others' only with --debug."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .console import console

PACKAGE = Path(__file__).resolve().parent.parent


@contextmanager
def plain_warnings() -> Iterator[None]:
    """While this lasts a warning of this library is a line on standard error, and others' are left out."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        yield


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = category.__module__.startswith("globalcnn.") or PACKAGE in Path(filename).parents
    if ours and sys.stderr is not None:
        text = " ".join(str(message).split())
        console(error=True).print(f"globalcnn: warning: {text}", markup=False)
