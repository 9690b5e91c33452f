"""`globalcnn build`: compile the native CPU kernels."""

from __future__ import annotations

import time
from dataclasses import dataclass

import tyro

from ..errors import UserError
from ..ops.native.build import build
from ..ops.native.library import cached_path, find
from .console import say


@dataclass(frozen=True)
class Args:
    """Compile the native CPU kernels of the Global layer with this machine's C++ compiler.

    Takes about a minute, once per version of the sources; the library goes to the user's cache.
    GLOBALCNN_CACHE names another folder, CXX the compiler. Without the kernels everything works, slower.
    """

    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compile again even if the kernels are there."""
    if_possible: tyro.conf.FlagCreatePairsOff[bool] = False
    """Where they cannot be compiled, say so in one line and succeed."""


def run(args: Args) -> None:
    """Compile, or say that there is nothing to do."""
    found, fault = find()
    if found is not None and not args.force:
        say(f"the native kernels are built: {found}")
        return
    if fault is not None:
        say(f"not used: {fault}")
    start = time.perf_counter()
    try:
        say(f"compiling the native CPU kernels (about a minute) into {cached_path().parent}")
        built = build(force=args.force)
    except UserError as error:
        if not args.if_possible:
            raise
        say(f"native kernels skipped: {error}")
        return
    say(f"built {built.name} in {time.perf_counter() - start:.0f} s")
