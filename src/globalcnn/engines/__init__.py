"""Inference engines: a network as a program of standard operators, and the runtimes that take it."""

from .program import bounds, exported_program, quiet
from .runtimes import RUNTIMES, Runtime, Session, checked_runtimes, installed_runtimes

__all__ = [
    "RUNTIMES",
    "Runtime",
    "Session",
    "bounds",
    "checked_runtimes",
    "exported_program",
    "installed_runtimes",
    "quiet",
]
