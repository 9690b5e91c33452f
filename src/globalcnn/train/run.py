"""A training from network, data and recipe to weights and a run folder; it can be killed and resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from ..data import DataSource, from_arrays, from_dataset
from ..errors import UserError, UserTypeError
from ..measure import environment
from ..models import Card, Source, parse_source
from .evaluate import Evaluation
from .folder import RunFolder, check_out
from .loop import Trainer
from .network import card_for, unwrapped
from .objectives import Objective, default_objective
from .progress import EpochResult, Reporter, Silent
from .recipe import Recipe
from .setting_up import checked_seed, make_accelerator


@dataclass(frozen=True)
class RunResult:
    """The result of a training.

    model: the network that was given, on the CPU with its last weights (averaged where the recipe averages),
    in eval mode; card: what its weights files say of it; test: evaluation of these weights on the test
    images, None if there are none; best_test: of the weights chosen by validation, None if nothing was held
    out; epochs: the figures per epoch, as in metrics.jsonl; left_out: test images that could not be read, a
    message for each.
    """

    model: nn.Module
    card: Card
    test: Evaluation | None
    best_test: Evaluation | None
    best_epoch: int | None
    epochs: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...] = ()


def train(
    model: nn.Module,
    data: Any,
    recipe: Recipe | None = None,
    *,
    objective: Objective | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    source: Source | str | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    notes: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train any classifier of images: a module that takes (N, C, H, W) and returns logits (N, classes).

    model: trained in place, from the weights that it has; afterwards on the CPU in eval mode.
    data: images with labels: a `DataSource`, as `globalcnn.data.load_data` gives one; a pair (images, labels)
        of arrays or tensors, a dictionary of them with the names of `globalcnn.data.from_arrays`, or a torch
        `Dataset` of raw images (`from_dataset`).
    recipe: default `Recipe()`.
    objective: what is minimised; default cross entropy, with auxiliary heads where the network has them and
        the recipe weighs them.
    out: run folder; None keeps nothing on disk. It must be new or empty, unless `resume` (continue it)
        or `overwrite` (remove what an earlier run left in it; files of others stay).
    seed: of order and augmentation, 0 to 2**32 - 1. On a CPU the same initial weights and seed give the same
        weights, bit for bit, also when the training was killed and resumed (same versions, same number of
        threads).
    source: how the network is built, so that `globalcnn.load(out)` builds it again:
        "package.module:function", "my_net.py:build", or an object of `globalcnn.models`; default what
        `create_model` noted. Without one the run folder holds the weights alone, and loading them needs the
        module.
    device: "auto", "cpu", "cuda" or "mps"; several processes through torchrun.
    notes: plain values to keep in run.json under their names.

    Raises `UserError` for what does not fit, `TrainingDiverged` for a loss that is not finite. After an
    error the module keeps its state of that moment.

    >>> from globalcnn.data import load_data
    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))
    >>> result = train(net, load_data("digits"), Recipe(epochs=1, flip=False))  # doctest: +SKIP
    >>> result.test.accuracy  # doctest: +SKIP
    0.32
    """
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise UserTypeError(f"recipe={recipe!r} must be a Recipe, such as Recipe(epochs=5)")
    if objective is not None and not isinstance(objective, Objective):
        raise UserTypeError(f"objective={objective!r} must be an Objective, such as CrossEntropy()")
    folder = None if out is None else Path(out)
    model = unwrapped(model)
    checked_seed(seed)
    data = as_source(data, recipe, seed)
    check_out(folder, resume=resume, overwrite=overwrite)
    card = card_for(model, data, recipe, source=parse_source(source) if isinstance(source, str) else source)
    # a test image damaged since the start is skipped in the evaluation, so that no training is lost
    data.check_images(("train", "val") if resume else ("train", "val", "test"))
    chosen = default_objective(model, recipe) if objective is None else objective
    # auxiliary heads and stochastic depth leave parameters without gradient in some steps
    unused = bool(recipe.drop_path_rate or getattr(model, "uncounted_modules", ()))
    accelerator = make_accelerator(device, recipe.precision, unused_parameters=unused)
    set_seed(seed)
    trainer = Trainer(
        model,
        data,
        recipe,
        objective=chosen,
        accelerator=accelerator,
        seed=seed,
        num_classes=card.num_classes,
    )
    about = {
        "model": {"name": card.label, **card.to_json()},
        "data": {**data.identity(), "test": data.size("test")},
        "recipe": recipe.as_dict(),
        "objective": chosen.describe(),
        "seed": seed,
        "processes": accelerator.num_processes,
        **(notes or {}),
        "environment": environment(),
    }
    opened = RunFolder.open(folder, about, resume=resume, overwrite=overwrite, accelerator=accelerator)
    try:
        return _run(trainer, card, opened, reporter)
    finally:
        opened.close()


def as_source(data: Any, recipe: Recipe, seed: int) -> DataSource:
    """What `train` takes for data, as a source; the recipe's share of it is held out."""
    if isinstance(data, DataSource):
        return data
    how: dict[str, Any] = {"validation": recipe.validation, "seed": seed}
    if isinstance(data, tuple) and len(data) == 2:
        return from_arrays(*data, **how)
    if isinstance(data, Mapping):
        names = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "classes", "layout", "name")
        unknown = [str(k) for k in data if k not in names]
        if unknown or not {"x_train", "y_train"} <= data.keys():
            what = f"has {', '.join(unknown)}" if unknown else "lacks x_train or y_train"
            raise UserError(f"data {what}: a dictionary of arrays has the names {', '.join(names)}")
        return from_arrays(**data, **how)
    if not isinstance(data, (str, bytes)) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return from_dataset(data, **how)
    raise UserTypeError(
        "data must be a DataSource (load_data), (images, labels), a dictionary of arrays or a torch Dataset, "
        f"not {type(data).__name__}"
    )


def _run(trainer: Trainer, card: Card, folder: RunFolder, reporter: Reporter | None) -> RunResult:
    history = folder.restore(trainer)
    speaker = reporter if reporter is not None and trainer.accelerator.is_main_process else Silent()
    speaker.started(folder.about, trainer.epoch)
    if trainer.epoch == 0:
        folder.save(trainer, card, history, best=False)
    if trainer.epoch < trainer.recipe.epochs:
        trainer.prepare(folder.path, getattr(speaker, "preparing", Silent().preparing))
    best_weights, best_epoch = folder.best(history)
    while trainer.epoch < trainer.recipe.epochs:
        result = trainer.run_epoch(speaker.stepped)
        history.append(result.as_dict())
        best = _is_best(trainer, result)
        if best:
            best_epoch = result.epoch
            best_weights = {k: v.detach().clone() for k, v in trainer.weights.items()}
        folder.save(trainer, card, history, best=best)
        speaker.finished_epoch(result)
    return _finish(trainer, card, folder, history, best_weights, best_epoch)


def _is_best(trainer: Trainer, result: EpochResult) -> bool:
    if result.validation is None:
        return False
    if trainer.best_accuracy is not None and result.validation.accuracy <= trainer.best_accuracy:
        return False
    trainer.best_accuracy = result.validation.accuracy
    return True


def _finish(
    trainer: Trainer,
    card: Card,
    folder: RunFolder,
    history: list[dict[str, Any]],
    best_weights: dict[str, Any] | None,
    best_epoch: int | None,
) -> RunResult:
    """Evaluate the weights on the test images; the module then holds the last weights, on the CPU."""
    last = {k: v.detach().clone() for k, v in trainer.weights.items()}
    model = trainer.model
    test = best_test = None
    left_out: tuple[str, ...] = ()
    if trainer.data.size("test"):
        loader = trainer.data.loader(
            "test",
            max(trainer.recipe.batch_size, 256),
            device=trainer.accelerator.device,
            rank=trainer.accelerator.process_index,
            world_size=trainer.accelerator.num_processes,
            skip_damaged=True,
        )
        try:
            model.load_state_dict(last)
            test = trainer.judge(loader, model)
            if best_weights is not None:
                model.load_state_dict(best_weights)
                best_test = trainer.judge(loader, model)
        except UserError as error:
            raise UserError(_finished_without_test(error, folder)) from error
        left_out = loader.damaged
    model.load_state_dict(last)
    model.to("cpu").to(memory_format=torch.contiguous_format)
    folder.summarise(history, test, best_test, best_epoch, left_out)
    return RunResult(model.eval(), card, test, best_test, best_epoch, tuple(history), left_out)


def _finished_without_test(error: UserError, folder: RunFolder) -> str:
    text = f"all epochs are trained, but the test images cannot be read: {error}"
    if folder.path is None:
        return text
    return (
        f"{text}. The weights are complete in {str(folder.path)!r}; once they are repaired or "
        "removed, --resume does the evaluation"
    )
