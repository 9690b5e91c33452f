"""The folder of a condensing: what was asked for, what is done, and how a killed one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from torch import Tensor

from ..errors import UserError
from ..files import cannot_write, read_json, remove_left_aside, write_json
from ..models.card import Card
from ..models.weights import read_weights, save_weights
from ..train.folder import OURS as OF_A_RUN
from ..train.lock import LOCK, FolderLock
from ..train.recipe import completed
from .data import Plan

RUN, PLAN, STEPS, REPORT, PICTURE = "run.json", "plan.json", "steps.json", "report.json", "report.png"
STARTED, REPAIRED, MODEL = "started.safetensors", "repaired.safetensors", "model.safetensors"
REPAIR, END_TO_END = "repair", "end_to_end"  # run folders
OURS: Final = (RUN, PLAN, STEPS, REPORT, PICTURE, STARTED, REPAIRED, MODEL)
FREE: Final = ("environment", "data_options")  # of run.json, what may differ when it is resumed


def check_free(out: Path, *, resume: bool, overwrite: bool, plan: Path | None = None) -> None:
    """Raise `UserError` unless `out` is free for a condensing, or holds one to resume or overwrite.

    plan: a plan file that was given; it may lie there alone.
    """
    if resume and overwrite:
        raise UserError(
            "resume and overwrite exclude each other: continue what is in the folder, or replace it"
        )
    try:
        there = {p.name for p in out.iterdir()} - {LOCK} if out.is_dir() else set()
        exists = out.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the folder {str(out)[:200]!r}: {error}") from error
    if exists and not out.is_dir():
        raise UserError(f"the folder {str(out)!r} is a file; choose another --out")
    if resume and RUN not in there:
        raise UserError(
            f"{str(out)!r} holds no condensing to resume; without --resume a new one starts there"
        )
    if resume or overwrite:
        return
    alone = {n for n in there if not n.startswith(f".{Path(PLAN).stem}.")} == {PLAN}
    if alone and plan is not None and plan.absolute() == (out / PLAN).absolute():
        return
    if alone:
        raise UserError(
            f"{str(out)!r} holds a plan: give it with --plan {out / PLAN}, replace it with --overwrite, or "
            "choose another --out"
        )
    if there:
        raise UserError(
            f"the folder {str(out)!r} is not empty: --resume continues its condensing, --overwrite replaces "
            "it, or choose another --out"
        )


class CondenseFolder:
    """A locked folder; a context manager. `step` does what is not done yet and keeps its result.

    A user's mistake that shows before there is a plan leaves the folder free for the next try.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.path = path
        self._is_new = not resume
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._lock = FolderLock(path)
        try:
            told = json.loads(json.dumps(dict(about)))
            if resume:
                self._check_same(told)
            remove_left_aside(path, OURS)
            if overwrite:
                self._clear()
            write_json(path / RUN, about)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> CondenseFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, UserError) and self._is_new and "plan" not in self.results():
            self.remove(RUN, STEPS)
        self._lock.release()

    def _check_same(self, told: Mapping[str, Any]) -> None:
        before = read_json(self.path / RUN)
        if not isinstance(before, dict):
            raise UserError(f"{str(self.path / RUN)!r} does not describe a condensing")
        for part in sorted({*before, *told} - set(FREE)):
            then, now = before.get(part), told.get(part)
            if part == "recipe" and isinstance(then, dict):
                then = completed(then)
            if isinstance(then, dict) and isinstance(now, dict):
                key = next((k for k in {**now, **then} if then.get(k) != now.get(k)), None)
                if key is None:
                    continue
                part, then, now = f"{part}: {key}", then.get(key), now.get(key)
            if then != now:
                raise UserError(
                    f"the condensing in {str(self.path)!r} cannot be resumed with other settings: {part} was "
                    f"{str(then)[:100]} and is now {str(now)[:100]}. Give the settings of its run.json, or "
                    "choose another --out"
                )

    def _clear(self) -> None:
        runs = [self.path / name for name in (REPAIR, END_TO_END)]
        for file in [self.path / n for n in OURS if n != PLAN] + [r / n for r in runs for n in OF_A_RUN]:
            try:
                if file.is_dir():  # TensorBoard's
                    for inner in file.iterdir():
                        inner.unlink()
                    file.rmdir()
                else:
                    file.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(file, error) from error

    def run(self, name: str) -> tuple[Path, bool]:
        """A run folder in it, and whether a training was begun there."""
        return self.path / name, (self.path / name / "run.json").is_file()

    def results(self) -> dict[str, Any]:
        """Results of the finished steps, by name."""
        path = self.path / STEPS
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict):
            raise UserError(f"{str(path)!r} is damaged: start again with --overwrite")
        return found

    def step(self, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: that of before, or that of `do()`, kept with the seconds that it took."""
        done = self.results()
        if name not in done:
            start = time.perf_counter()
            result = do()
            done[name] = {**result, "seconds_spent": round(time.perf_counter() - start, 3)}
            write_json(self.path / STEPS, done)
        found: dict[str, Any] = done[name]
        return found

    def plan(self, make: Callable[[], Plan]) -> Plan:
        """The plan that is kept, else the one that `make` gives, which is then kept."""
        if "plan" not in self.results():
            plan = make()
            plan.save(self.path / PLAN)
            self.step("plan", dict)
            return plan
        return Plan.load(self.path / PLAN)

    def save(self, name: str, weights: Mapping[str, Tensor], card: Card) -> None:
        """Keep weights under a name."""
        save_weights(self.path / name, weights, card)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights kept under a name."""
        return dict(read_weights(self.path / name)[0])

    def remove(self, *names: str) -> None:
        """Remove files that are not needed any more."""
        for name in names:
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
