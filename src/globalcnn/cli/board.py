"""TensorBoard's log of a training, if TensorBoard is installed.

Written here and not by its SummaryWriter, whose thread ends in a traceback of its own when the disk is full.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import cannot_write


class Board:
    """Scalars by epoch, in a new file of events in `folder`. Nothing is written without TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._file: Any = None
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            return
        self._event, self._summary = Event, Summary
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, figures: Mapping[str, float | None], epoch: int) -> None:
        """The figures after an epoch; None is left out. Raises `UserError` if they cannot be written."""
        if self._file is None:
            return
        values = [self._summary.Value(tag=n, simple_value=v) for n, v in figures.items() if v is not None]
        self._write(self._event(wall_time=time.time(), step=epoch, summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self.close()
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # what was buffered when the disk became full, which has been said
                file.raw.close()
