"""A training with its run folder: recipe, versions, figures, checkpoints; killed at any time, it resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from ..data import DataSource
from ..errors import UserError
from ..measure import environment
from ..measure.probe import check_runs
from ..models import Card, NamedSource, settings_for_size
from .evaluate import Evaluation
from .folder import RunFolder, check_out
from .loop import Trainer
from .objectives import Objective, default_objective
from .progress import EpochResult, Reporter, Silent
from .recipe import Recipe
from .setting_up import checked_seed, make_accelerator


@dataclass(frozen=True)
class RunResult:
    """What a training ended with.

    model: the network on the CPU with its last weights, in eval mode; test: evaluation of the last epoch's
    weights on the test images; best_test: of the weights chosen by validation, None if nothing was held out;
    epochs: the figures per epoch, as in metrics.jsonl.
    """

    model: nn.Module
    card: Card
    test: Evaluation
    best_test: Evaluation | None
    best_epoch: int | None
    epochs: tuple[dict[str, Any], ...]


def train(
    model: str,
    data: DataSource,
    recipe: Recipe,
    *,
    objective: Objective | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    settings: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train the network called `model` on `data` by `recipe`.

    objective: what is minimised; default cross entropy, with auxiliary heads where the network has them and
        the recipe weighs them.
    out: run folder; None keeps nothing on disk. It must be new or empty, unless `resume` (go on with it)
        or `overwrite` (remove what an earlier run left in it; files of others stay).
    seed: of weights, order and augmentation. On a CPU the same seed gives the same weights, bit for bit, also
        when the training was killed and resumed (same versions, same number of threads).
    device: "auto", "cpu", "cuda" or "mps"; several processes through torchrun.
    settings: further arguments of the network's constructor.

    Raises `UserError` for what does not fit, `TrainingDiverged` for a loss that is not finite.
    """
    checked_seed(seed)
    check_out(out, resume=resume, overwrite=overwrite)
    card = describe(model, data, recipe, settings or {})
    set_seed(seed)
    network = card.build()
    check_runs(network, (card.in_chans, *card.image_size))
    # auxiliary heads and stochastic depth leave parameters without gradient in some steps
    unused = bool(recipe.drop_path_rate or getattr(network, "uncounted_modules", ()))
    accelerator = make_accelerator(device, recipe.precision, unused_parameters=unused)
    chosen = default_objective(network, recipe) if objective is None else objective
    trainer = Trainer(
        network,
        data,
        recipe,
        objective=chosen,
        accelerator=accelerator,
        seed=seed,
        num_classes=card.num_classes,
    )
    about = {
        "model": {"model": card.label, **card.to_json()},
        "data": {
            "name": data.name,
            "train": data.size("train"),
            "val": data.size("val"),
            "test": data.size("test"),
        },
        "recipe": recipe.as_dict(),
        "objective": chosen.describe(),
        "seed": seed,
        "processes": accelerator.num_processes,
        "environment": environment(),
    }
    folder = RunFolder.open(out, about, resume=resume, overwrite=overwrite, accelerator=accelerator)
    try:
        return _run(trainer, card, folder, reporter)
    finally:
        folder.close()


def _run(trainer: Trainer, card: Card, folder: RunFolder, reporter: Reporter | None) -> RunResult:
    history = folder.restore(trainer)
    speaker = reporter if reporter is not None and trainer.accelerator.is_main_process else Silent()
    speaker.started(folder.about, trainer.epoch)
    if trainer.epoch == 0:
        folder.save(trainer, card, history, best=False)
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


def describe(model: str, data: DataSource, recipe: Recipe, settings: dict[str, Any]) -> Card:
    """What will be trained: classes and channels follow the data unless the settings say otherwise."""
    chosen = dict(settings)
    num_classes = chosen.pop("num_classes", None)
    in_chans = chosen.pop("in_chans", None)
    for name in ("drop_rate", "drop_path_rate"):
        if getattr(recipe, name):
            chosen.setdefault(name, getattr(recipe, name))
    chosen = settings_for_size(model, *data.image_size) | chosen
    card = Card(
        source=NamedSource(model, chosen),
        num_classes=len(data.classes) if num_classes is None else num_classes,
        in_chans=data.in_chans if in_chans is None else in_chans,
        image_size=data.image_size,
        classes=data.classes,
        mean=data.mean or (),
        std=data.std or (),
    )
    if card.num_classes < len(data.classes) or card.in_chans != data.in_chans:
        problems = card.misfits(len(data.classes), data.in_chans)
        raise UserError(f"model {model!r} does not fit the data {data.name!r}: {' and '.join(problems)}")
    return card


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
    loader = trainer.data.loader(
        "test",
        max(trainer.recipe.batch_size, 256),
        device=trainer.accelerator.device,
        rank=trainer.accelerator.process_index,
        world_size=trainer.accelerator.num_processes,
    )
    final = card.build()
    best_test = None
    try:
        test = trainer.judge(loader)
        if best_weights is not None:
            final.load_state_dict(best_weights)
            best_test = trainer.judge(loader, final.to(trainer.accelerator.device))
    except UserError as error:
        raise UserError(_finished_without_test(error, folder)) from error
    final.load_state_dict(trainer.weights)
    folder.summarise(history, test, best_test, best_epoch)
    return RunResult(final.to("cpu").eval(), card, test, best_test, best_epoch, tuple(history))


def _finished_without_test(error: UserError, folder: RunFolder) -> str:
    text = f"all epochs are trained, but the test images cannot be read: {error}"
    if folder.path is None:
        return text
    return (
        f"{text}. The weights are whole in {str(folder.path)!r}; when the test images are mended, or the "
        "broken ones removed, --resume does what is left"
    )
