"""Trainings in stretches: processes that share a folder of them, each of which ends at a given time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from globalcnn.errors import UserError
from globalcnn.train.lock import FolderLock
from globalcnn.train.progress import EpochResult, Silent

RESULT = "result.json"  # in the folder of a training that has ended


class OutOfTime(Exception):
    """The stretch of time is over; what was trained is kept."""


class EndsAt(Silent):
    """Ends a training after an epoch once `time.monotonic()` is past `until`."""

    def __init__(self, until: float) -> None:
        self._until = until

    def finished_epoch(self, result: EpochResult) -> None:
        """Stop if the time is over."""
        if time.monotonic() > self._until:
            raise OutOfTime


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder of a training; False where it has ended already or another process has it."""
    if (folder / RESULT).is_file():
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder)
    except UserError:
        yield False
        return
    try:
        yield not (folder / RESULT).is_file()
    finally:
        lock.release()
