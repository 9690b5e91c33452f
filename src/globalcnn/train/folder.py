"""The run folder: its files, its lock, and how a killed run is resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import UserError
from ..files import cannot_write, read_json, remove_left_aside, write_json, write_text
from ..models import Card, save_weights
from ..models.weights import read_weights
from .evaluate import Evaluation
from .lock import LOCK, FolderLock
from .loop import Trainer
from .recipe import Recipe, completed
from .state import check_state, load_state, save_state

RUN, METRICS, STATE, LAST, BEST, SUMMARY, TEACHER = (
    "run.json",
    "metrics.jsonl",
    "state.pt",
    "last.safetensors",
    "best.safetensors",
    "summary.json",
    "teacher.safetensors",  # logits that an objective keeps
)
OURS = (RUN, METRICS, STATE, LAST, BEST, SUMMARY, TEACHER, "log.txt", "curves.png", "tensorboard")
SAME_RUN = ("model", "init", "data", "recipe", "objective", "seed", "processes")


def check_out(out: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Raise `UserError` unless `out` is free for a new run, or holds one to `resume` or `overwrite`.

    A folder that a run was killed in before its first state is as good as new, and can be resumed too.
    """
    if resume and overwrite:
        raise UserError(
            "resume and overwrite exclude each other: continue the run in the folder, or replace it"
        )
    if out is None:
        if resume:
            raise UserError("resume needs the run folder to resume from: give out (--out)")
        return
    if "\0" in str(out):
        raise UserError(f"the run folder {str(out)!r} has a null character in its name; choose another --out")
    try:
        there = sorted(p.name for p in out.iterdir()) if out.is_dir() else None
        exists = out.exists()
    except OSError as error:
        raise UserError(
            f"cannot read the run folder {str(out)[:200]!r}: {error.strerror or error}"
        ) from error
    if exists and there is None:
        raise UserError(f"the run folder {str(out)!r} is a file; choose another --out")
    if resume and there is None:
        raise UserError(
            f"there is no run folder {str(out)!r} to resume: without --resume a new run starts there"
        )
    filled = [name for name in there or () if name != LOCK and not _left_aside(name)]
    if resume and RUN not in filled:
        what = "holds no run" if filled else "is empty: there is no run"
        raise UserError(
            f"{str(out)!r} {what} to resume; "
            + ("choose another --out" if filled else "without --resume a new run starts there")
        )
    if filled and not (resume or overwrite) and not barely_begun(out):
        raise UserError(
            f"the run folder {str(out)!r} is not empty: --resume continues its run, "
            "--overwrite replaces it, or choose another --out"
        )


def figures_of(folder: Path) -> list[dict[str, Any]]:
    """The figures of each epoch that a run folder keeps, none before its first.

    Raises `UserError` for a damaged file.
    """
    path = folder / METRICS
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the figures {str(path)!r}: {error}") from error


def barely_begun(out: Path) -> bool:
    """Whether `out` holds a run that was stopped before its first state, and nothing else."""
    names = {p.name for p in out.iterdir() if not _left_aside(p.name)}
    if RUN not in names or names & {STATE, BEST, SUMMARY} or names - {*OURS, LOCK}:
        return False
    return METRICS not in names or (out / METRICS).stat().st_size == 0


def _left_aside(name: str) -> bool:
    """Whether a file is the temporary of a killed write; see `files.atomic_write`."""
    return any(
        name.startswith(f".{os.path.splitext(ours)[0]}.") and name.endswith(os.path.splitext(ours)[1])
        for ours in OURS
    )


@dataclass(frozen=True)
class RunFolder:
    """The run folder, or nothing at all if `path` is None. Only the first of several processes writes."""

    path: Path | None
    accelerator: Accelerator
    about: dict[str, Any]
    resumed: bool
    lock: FolderLock | None

    @staticmethod
    def open(
        out: Path | None, about: dict[str, Any], *, resume: bool, overwrite: bool, accelerator: Accelerator
    ) -> RunFolder:
        """Lock the folder and write run.json. Raises `UserError` as `check_out` does, and if it is locked or
        holds another run than `about`.
        """
        check_out(out, resume=resume, overwrite=overwrite)
        if out is None:
            return RunFolder(None, accelerator, about, False, None)
        lock = _locked(out) if accelerator.is_main_process else None
        try:
            resumed = resume and (out / STATE).is_file()
            folder = RunFolder(out, accelerator, about, resumed, lock)
            if resume:
                folder._check_same_run()
            elif not overwrite and not resume:
                check_out(out, resume=False, overwrite=False)  # again, now that the lock is held
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                remove_left_aside(out, OURS)
                if not resumed:
                    folder._clear()
                write_json(out / RUN, about)
            accelerator.wait_for_everyone()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return folder

    def close(self) -> None:
        """Release the folder's lock."""
        if self.lock is not None:
            self.lock.release()

    def _check_same_run(self) -> None:
        assert self.path is not None
        before = read_json(self.path / RUN)
        different = what_differs(before, json.loads(json.dumps(self.about)))
        if different:
            raise UserError(
                f"the run in {str(self.path)!r} cannot be resumed with other settings: "
                f"{'; '.join(different)}. "
                "Give the settings of its run.json, or choose another --out"
                " (--init RUN starts a new run from its weights)"
            )

    def _clear(self) -> None:
        assert self.path is not None
        for name in OURS:
            target = self.path / name
            try:
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(target, error) from error

    def restore(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Restore the trainer to where the folder's run stopped; return the figures of the epochs before."""
        if not self.resumed or self.path is None:
            return []
        state = load_state(self.path / STATE)
        check_state(state, epochs=trainer.recipe.epochs, path=self.path / STATE)
        trainer.load_state(state)
        return [dict(figures) for figures in state["history"]]

    def best(self, history: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, int | None]:
        """The weights chosen so far and their epoch, when a run is resumed."""
        judged = [f for f in history if f["val_accuracy"] is not None]
        if self.path is None or not judged:
            return None, None
        weights, _ = read_weights(self.path / BEST)
        return weights, max(judged, key=lambda f: f["val_accuracy"])["epoch"]

    def save(self, trainer: Trainer, card: Card, history: list[dict[str, Any]], *, best: bool) -> None:
        """After an epoch: weights first, the state last, so that a kill in between repeats the epoch."""
        if self.path is not None and self.accelerator.is_main_process:
            if best:
                save_weights(self.path / BEST, trainer.weights, card)
            save_weights(self.path / LAST, trainer.weights, card)
            write_text(self.path / METRICS, "".join(json.dumps(f) + "\n" for f in history))
            save_state(self.path / STATE, {**trainer.state(), "history": history})
        self.accelerator.wait_for_everyone()

    def summarise(
        self,
        history: list[dict[str, Any]],
        test: Evaluation | None,
        best_test: Evaluation | None,
        best_epoch: int | None,
        left_out: Sequence[str],
    ) -> None:
        """Write summary.json."""
        if self.path is None or not self.accelerator.is_main_process:
            return
        figures = {
            "test_accuracy": None if test is None else test.accuracy,
            "test_loss": None if test is None else test.loss,
            "test_images": None if test is None else test.images,
            "test_images_left_out": list(left_out),
            "test_accuracy_of_best": None if best_test is None else best_test.accuracy,
            "best_epoch": best_epoch,
            "epochs": len(history),
            "training_seconds": round(sum(f["seconds"] for f in history), 1),
            "test_confusion": None if test is None else test.confusion,
        }
        write_json(self.path / SUMMARY, {**figures, **self.about})


def _locked(out: Path) -> FolderLock:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    return FolderLock(out)


def what_differs(before: Any, now: dict[str, Any]) -> list[str]:
    """Phrases for each difference between a run and run.json that prevents resuming it.

    How many test images there are may change: they are looked at after the last epoch. So may the number of
    epochs where nothing in an epoch depends on it.
    """
    if not isinstance(before, dict):
        return ["its run.json does not describe a run"]
    different = []
    for part in SAME_RUN:
        then, here = before.get(part), now.get(part)
        if not (isinstance(then, dict) and isinstance(here, dict)):
            if then != here:
                different.append(f"{part} was {then!r} and is now {here!r}")
            continue
        if part == "recipe":
            then = completed(then)
        for key in {**here, **then}:
            if then.get(key) == here.get(key) or (part, key) == ("data", "test"):
                continue
            if (part, key) == ("recipe", "epochs") and can_grow(here):
                continue
            words = f"{key} was {then.get(key)!r} and is now {here.get(key)!r}"
            if (part, key) == ("recipe", "epochs"):
                words += ", and what happens in every epoch depends on it"
            different.append(words)
    return different


def can_grow(recipe: dict[str, Any]) -> bool:
    """Whether a training by this recipe (`Recipe.as_dict`) may get another number of epochs on the way."""
    r = Recipe.from_dict(recipe)
    return not (r.schedule == "cosine" or r.lr_noise or r.drop_path_rate or r.first_image_size)
