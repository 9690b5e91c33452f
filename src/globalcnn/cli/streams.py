"""Standard input, output and error as they may be: closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import sys


def standard_streams() -> bool:
    """Make standard input and error usable; whether standard output is open.

    A closed one is a trap: the next file that is opened takes its number, and what C libraries print goes
    into that file. What an encoding lacks is printed as an escape, so that no name of a file ends a command.
    """
    for number in (0, 2):
        _fill(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return sys.stdout is not None


def _fill(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        handle = os.open(os.devnull, os.O_RDWR)
        if handle != number:
            os.dup2(handle, number)
            os.close(handle)


def forget_output() -> None:
    """Nothing more is written to standard output, not even at the interpreter's end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
