"""The time of a training that is stopped and goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path

from globalcnn.files import write_json
from globalcnn.train.progress import EpochResult

from ..stretches import EndsAt


class Clock(EndsAt):
    """Adds up the wall time of a training over all its stretches, and ends each after an epoch.

    path: keeps the seconds; until: the clock `time.monotonic()` after which an epoch is the last. An epoch
    that a killed process did not end counts for nothing, as it is trained anew.
    """

    def __init__(self, path: Path, until: float) -> None:
        super().__init__(until)
        self._path = path
        self._before = float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0.0
        self._start = time.monotonic()

    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._start

    def finished_epoch(self, result: EpochResult) -> None:
        """Keep the time, and stop if it is over."""
        write_json(self._path, self.seconds())
        super().finished_epoch(result)
