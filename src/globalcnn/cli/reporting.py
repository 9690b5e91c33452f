"""What a training says while it runs: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..files import cannot_write
from ..train import EpochResult
from ..train import Progress as Step
from .board import Board
from .console import console, percent, say

QUIET_SECONDS = 30.0


class TrainingReporter:
    """Tells of a training on standard output; with a `folder` also in its log.txt, and to TensorBoard if
    that is installed.
    """

    def __init__(self, *, folder: Path | None = None, label: str = "", opening: str = "") -> None:
        self._terminal = sys.stdout.isatty()
        self._label = f"{label}: " if label else ""
        self._folder = folder
        self._opening = opening
        self._board: Board | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()

    def started(self, about: dict[str, Any], resumed_at: int) -> None:
        """Say what is trained; open the bar and TensorBoard's log."""
        if self._opening:
            say(self._opening)
            self._log(self._opening)
        if resumed_at:
            say(f"{self._label}resumed after epoch {resumed_at}")
            self._log(f"resumed after epoch {resumed_at}")
        if self._folder is not None:
            self._board = Board(self._folder / "tensorboard")
        if self._terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console(),
                transient=True,
            )
            self._bar.start()

    def _log(self, text: str) -> None:
        """A line with the time of day to log.txt in the run folder; a resumed run goes on in it."""
        if self._folder is None:
            return
        path = self._folder / "log.txt"
        try:
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def preparing(self, what: str, done: int, total: int) -> None:
        """Move a bar; elsewhere a line now and then."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(f"{self._label}{what}", total=total, note="images")
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._last_line > QUIET_SECONDS:
            say(f"{self._label}{what}: {done:,} of {total:,} images")
            self._last_line = time.monotonic()

    def stepped(self, progress: Step) -> None:
        """Move the bar; elsewhere a line now and then in long epochs, so that nobody waits in the dark."""
        note = f"loss {progress.loss:.4f}  {progress.images_per_second:.0f} images/s"
        if self._bar is not None:
            if progress.step == 1:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                text = f"{self._label}epoch {progress.epoch}/{progress.epochs}"
                self._task = self._bar.add_task(text, total=progress.steps, note=note)
            self._bar.update(self._task, completed=progress.step, note=note)
        elif time.monotonic() - self._last_line > QUIET_SECONDS:
            say(
                f"{self._label}epoch {progress.epoch}/{progress.epochs}  "
                f"step {progress.step}/{progress.steps}  {note}"
            )
            self._last_line = time.monotonic()

    def finished_epoch(self, result: EpochResult) -> None:
        """One line with the epoch's figures."""
        parts = [f"{self._label}epoch {result.epoch}", f"loss {result.train_loss:.4f}"]
        if result.train_accuracy is not None:
            parts.append(f"train {percent(result.train_accuracy)}")
        if result.validation is not None:
            parts.append(f"val {percent(result.validation.accuracy)}")
        parts += [f"{name} {value:.4f}" for name, value in result.figures.items()]
        if result.evaluations is not None:
            backward = f" + {result.backward_evaluations:.1f}" if result.backward_evaluations else ""
            parts.append(f"evaluations {result.evaluations:.1f}{backward}")
        parts.append(f"{result.seconds:.1f} s")
        text = "  ".join(parts)
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            say(text)
        self._log(text)
        self._last_line = time.monotonic()
        if self._board is not None:
            figures: dict[str, float | None] = {
                "loss/train": result.train_loss,
                "lr": result.lr,
                "accuracy/train": result.train_accuracy,
            }
            if result.validation is not None:
                figures |= {"loss/val": result.validation.loss, "accuracy/val": result.validation.accuracy}
            self._board.add(figures, result.epoch)
