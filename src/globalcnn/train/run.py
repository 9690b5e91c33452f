"""A training with its run folder: recipe, versions, figures, checkpoints; killed at any time, it resumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ..data import DataSource
from ..errors import UserError
from ..files import read_json, write_json, written_aside
from ..measure import environment
from ..measure.probe import check_runs
from ..models import settings_for_size
from .checkpoint import Description, load_state, load_weights, save_state, save_weights
from .evaluate import Evaluation
from .loop import EpochResult, Progress, Trainer, make_accelerator
from .recipe import Recipe

RUN, METRICS, STATE, LAST, BEST, SUMMARY = (
    "run.json",
    "metrics.jsonl",
    "state.pt",
    "last.safetensors",
    "best.safetensors",
    "summary.json",
)
OURS = (RUN, METRICS, STATE, LAST, BEST, SUMMARY, "log.txt", "curves.png", "tensorboard")


class Reporter(Protocol):
    """Who hears of a training while it runs (only on the first of several processes)."""

    def started(self, about: dict[str, Any], resumed_at: int) -> None:
        """Before the first step; `about` is what run.json holds."""

    def stepped(self, progress: Progress) -> None:
        """After every step."""

    def finished_epoch(self, result: EpochResult) -> None:
        """After every epoch."""


class Silent:
    """A reporter that says nothing."""

    def started(self, about: dict[str, Any], resumed_at: int) -> None:
        """Nothing."""

    def stepped(self, progress: Progress) -> None:
        """Nothing."""

    def finished_epoch(self, result: EpochResult) -> None:
        """Nothing."""


@dataclass(frozen=True)
class RunResult:
    """What a training ended with.

    model: the network on the CPU with its last weights, in eval mode; test: evaluation of the last epoch's
    weights on the test images; best_test: of the weights chosen by validation, None if nothing was held out;
    epochs: the figures per epoch, as in metrics.jsonl.
    """

    model: nn.Module
    description: Description
    test: Evaluation
    best_test: Evaluation | None
    best_epoch: int | None
    epochs: tuple[dict[str, Any], ...]


def train(
    model: str,
    data: DataSource,
    recipe: Recipe,
    *,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    settings: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train the network called `model` on `data` by `recipe`.

    out: run folder; None keeps nothing on disk. It must be new or empty, unless `resume` (go on with it)
        or `overwrite` (remove what an earlier run left in it; files of others stay).
    seed: of weights, order and augmentation. On a CPU the same seed gives the same weights, bit for bit, also
        when the training was killed and resumed (same versions, same number of threads).
    device: "auto", "cpu", "cuda" or "mps"; several processes through torchrun.
    settings: further arguments of the network's constructor.

    Raises `UserError` for what does not fit, `TrainingDiverged` for a loss that is not finite.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={seed!r} must be a whole number >= 0")
    description = describe(model, data, recipe, settings or {})
    set_seed(seed)
    network = description.build()
    check_runs(network, (description.in_chans, *description.image_size))
    # auxiliary heads and stochastic depth leave parameters without gradient in some steps
    unused = bool(recipe.drop_path_rate or getattr(network, "uncounted_modules", ()))
    accelerator = make_accelerator(device, recipe.precision, unused_parameters=unused)
    trainer = Trainer(network, data, recipe, accelerator, seed=seed)
    about = {
        "model": asdict(description),
        "data": {
            "name": data.name,
            "train": data.size("train"),
            "val": data.size("val"),
            "test": data.size("test"),
        },
        "recipe": recipe.as_dict(),
        "seed": seed,
        "processes": accelerator.num_processes,
        "environment": environment(),
    }
    folder = _Folder.open(out, about, resume=resume, overwrite=overwrite, accelerator=accelerator)
    history = folder.restore(trainer)
    speaker = reporter if reporter is not None and accelerator.is_main_process else Silent()
    speaker.started(about, trainer.epoch)
    if trainer.epoch == 0:
        folder.save(trainer, description, history, best=False)
    best_weights, best_epoch = folder.best(history)
    while trainer.epoch < recipe.epochs:
        result = trainer.run_epoch(speaker.stepped)
        history.append(_figures(result))
        best = _is_best(trainer, result)
        if best:
            best_epoch = result.epoch
            best_weights = {k: v.detach().clone() for k, v in trainer.weights.items()}
        folder.save(trainer, description, history, best=best)
        speaker.finished_epoch(result)
    return _finish(trainer, description, folder, history, best_weights, best_epoch)


def describe(model: str, data: DataSource, recipe: Recipe, settings: dict[str, Any]) -> Description:
    """What will be trained: classes and channels follow the data unless the settings say otherwise."""
    chosen = dict(settings)
    num_classes = chosen.pop("num_classes", None)
    in_chans = chosen.pop("in_chans", None)
    for name in ("drop_rate", "drop_path_rate"):
        if getattr(recipe, name):
            chosen.setdefault(name, getattr(recipe, name))
    chosen = settings_for_size(model, *data.image_size) | chosen
    description = Description(
        model=model,
        num_classes=len(data.classes) if num_classes is None else num_classes,
        in_chans=data.in_chans if in_chans is None else in_chans,
        image_size=data.image_size,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        settings=chosen,
    )
    if description.num_classes < len(data.classes) or description.in_chans != data.in_chans:
        problems = description.misfits(len(data.classes), data.in_chans)
        raise UserError(f"model {model!r} does not fit the data {data.name!r}: {' and '.join(problems)}")
    return description


def _figures(result: EpochResult) -> dict[str, Any]:
    validation = result.validation
    return {
        "epoch": result.epoch,
        "lr": result.lr,
        "train_loss": result.train_loss,
        "train_accuracy": result.train_accuracy,
        "val_loss": None if validation is None else validation.loss,
        "val_accuracy": None if validation is None else validation.accuracy,
        "seconds": round(result.seconds, 3),
        "evaluations": result.evaluations,
        "backward_evaluations": result.backward_evaluations,
    }


def _is_best(trainer: Trainer, result: EpochResult) -> bool:
    if result.validation is None:
        return False
    if trainer.best_accuracy is not None and result.validation.accuracy <= trainer.best_accuracy:
        return False
    trainer.best_accuracy = result.validation.accuracy
    return True


def _finish(
    trainer: Trainer,
    description: Description,
    folder: _Folder,
    history: list[dict[str, Any]],
    best_weights: dict[str, Any] | None,
    best_epoch: int | None,
) -> RunResult:
    loader = trainer.data.loader(
        "test",
        max(trainer.recipe.batch_size, 256),
        device=trainer.accelerator.device,
        rank=trainer.accelerator.process_index,
        world_size=trainer.accelerator.num_processes,
    )
    test = trainer.judge(loader)
    final = description.build()
    best_test = None
    if best_weights is not None:
        final.load_state_dict(best_weights)
        best_test = trainer.judge(loader, final.to(trainer.accelerator.device))
    final.load_state_dict(trainer.weights)
    folder.summarise(history, test, best_test, best_epoch)
    return RunResult(final.to("cpu").eval(), description, test, best_test, best_epoch, tuple(history))


@dataclass(frozen=True)
class _Folder:
    """The run folder, or nothing at all if `path` is None. Only the first process writes."""

    path: Path | None
    accelerator: Accelerator
    about: dict[str, Any]
    resumed: bool

    @staticmethod
    def open(
        out: Path | None, about: dict[str, Any], *, resume: bool, overwrite: bool, accelerator: Accelerator
    ) -> _Folder:
        if out is None:
            if resume:
                raise UserError("resume needs the run folder to resume from: give out (--out)")
            return _Folder(None, accelerator, about, False)
        if resume and overwrite:
            raise UserError(
                "resume and overwrite exclude each other: go on with the run in the folder, or replace it"
            )
        if out.exists() and not out.is_dir():
            raise UserError(f"the run folder {str(out)!r} is a file; choose another --out")
        filled = out.is_dir() and any(out.iterdir())
        resumed = resume and (out / STATE).is_file()
        if resume and filled and not resumed:
            raise UserError(
                f"{str(out)!r} holds no training state ({STATE}) to resume from; choose another --out"
            )
        if filled and not (resume or overwrite):
            raise UserError(
                f"the run folder {str(out)!r} is not empty: --resume goes on with its run, "
                "--overwrite replaces it, or choose another --out"
            )
        folder = _Folder(out, accelerator, about, resumed)
        if resumed:
            folder._check_same_run()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not resumed:
            if overwrite:
                folder._clear()
            write_json(out / RUN, about)
        accelerator.wait_for_everyone()
        return folder

    def _check_same_run(self) -> None:
        assert self.path is not None
        before = read_json(self.path / RUN)
        parts = ("model", "data", "recipe", "seed", "processes")
        different = []
        for part in parts:
            now = json.loads(json.dumps(self.about[part]))
            then = before.get(part)
            if now == then:
                continue
            if isinstance(now, dict) and isinstance(then, dict):
                keys = [k for k in {**now, **then} if now.get(k) != then.get(k)]
                different += [f"{k} was {then.get(k)!r} and is now {now.get(k)!r}" for k in keys]
            else:
                different.append(f"{part} was {then!r} and is now {now!r}")
        if different:
            raise UserError(
                f"the run in {str(self.path)!r} cannot be resumed with other settings: "
                f"{'; '.join(different)}. "
                "Give the settings of its run.json, or choose another --out"
            )

    def _clear(self) -> None:
        assert self.path is not None
        for name in OURS:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def restore(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Bring the trainer to where the folder's run stopped; the figures of the epochs before."""
        if not self.resumed or self.path is None:
            return []
        state = load_state(self.path / STATE)
        try:
            trainer.load_state(state)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"the training state in {str(self.path)!r} does not fit this run: {error}"
            ) from error
        return [dict(figures) for figures in state["history"]]

    def best(self, history: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, int | None]:
        """The weights chosen so far and their epoch, when a run is resumed."""
        if self.path is None or not (self.path / BEST).is_file():
            return None, None
        judged = [f for f in history if f["val_accuracy"] is not None]
        if not judged:
            return None, None
        weights, _ = load_weights(self.path / BEST)
        return weights, max(judged, key=lambda f: f["val_accuracy"])["epoch"]

    def save(
        self, trainer: Trainer, description: Description, history: list[dict[str, Any]], *, best: bool
    ) -> None:
        """After an epoch: weights first, the state last, so that a kill in between repeats the epoch."""
        if self.path is not None and self.accelerator.is_main_process:
            if best:
                save_weights(self.path / BEST, trainer.weights, description)
            save_weights(self.path / LAST, trainer.weights, description)
            with written_aside(self.path / METRICS) as part:
                part.write_text("".join(json.dumps(f) + "\n" for f in history), encoding="utf-8")
            save_state(self.path / STATE, {**trainer.state(), "history": history})
        self.accelerator.wait_for_everyone()

    def summarise(
        self,
        history: list[dict[str, Any]],
        test: Evaluation,
        best_test: Evaluation | None,
        best_epoch: int | None,
    ) -> None:
        """Write summary.json."""
        if self.path is None or not self.accelerator.is_main_process:
            return
        figures = {
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_accuracy_of_best": None if best_test is None else best_test.accuracy,
            "best_epoch": best_epoch,
            "epochs": len(history),
            "training_seconds": round(sum(f["seconds"] for f in history), 1),
            "test_confusion": test.confusion,
        }
        write_json(self.path / SUMMARY, {**figures, **self.about})
