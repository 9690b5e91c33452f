"""The training loop: epochs over a loader, evaluation, and all that a resumed training needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import distribute_bn
from torch import Tensor, nn

from ..data import Augmentation, DataSource, Loader
from ..errors import UserError
from ..nn.implicit import ImplicitLayer
from .compiled import blamed_on_compiling
from .divergence import TrainingDiverged, where_it_began
from .evaluate import Evaluation, NotFinite, evaluation, tally
from .growing import check_first_image_size, resized, size_in
from .objectives import Objective, Outcome, Place, Training, WithObjective
from .progress import EpochResult, Progress
from .recipe import Recipe
from .schedule import Schedule
from .setting_up import make_average, make_mixup, make_optimizer


class Trainer:
    """One training: model, data, recipe and objective brought together; `run_epoch` does the next epoch.

    num_classes: how many logits the network gives, at least the classes of the data. All randomness of an
    epoch follows from (seed, epoch, process), so a training that is resumed at the end of an epoch gives
    exactly the weights of one that never stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSource,
        recipe: Recipe,
        *,
        objective: Objective,
        accelerator: Accelerator,
        seed: int,
        num_classes: int,
    ) -> None:
        self.recipe, self.data, self.accelerator, self.seed = recipe, data, accelerator, seed
        self.num_classes, self.objective = num_classes, objective
        if objective.fixed_views and (recipe.mixup or recipe.cutmix):
            raise UserError(
                f"the objective is computed on fixed views of the images, and the recipe mixes them in pairs "
                f"(mixup={recipe.mixup}, cutmix={recipe.cutmix}): take neither, or a live teacher (views=0)"
            )
        check_first_image_size(recipe, data.image_size)
        self.augmentation = Augmentation(
            crop_padding=recipe.crop_padding,
            flip=recipe.flip,
            cutout=recipe.cutout,
            rand_augment=recipe.rand_augment,
            random_erasing=recipe.random_erasing,
            fixed_views=objective.fixed_views,
        )
        self.train_loader = self._loader("train")
        self.validation_loader = self._loader("val") if data.size("val") else None
        self.model = model.to(accelerator.device)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = make_average(self.model, recipe)
        self.extra = objective.setup(self.model, device=accelerator.device)
        optimizer = make_optimizer([self.model, *([] if self.extra is None else [self.extra])], recipe)
        self.schedule = Schedule(optimizer, recipe, steps=len(self.train_loader), seed=seed)
        if recipe.compile:
            self.model.compile()
        self.mixup = make_mixup(recipe, num_classes)
        trained = WithObjective(self.model, objective, self.extra)
        self.wrapped, self.optimizer = accelerator.prepare(trained, optimizer)
        self._implicit = [m for m in self.model.modules() if isinstance(m, ImplicitLayer)]
        self._evaluations = [0, 0]
        self.epoch = 0
        self.best_accuracy: float | None = None

    def _loader(self, split: str) -> Loader:
        r, training = self.recipe, split == "train"
        return self.data.loader(
            split,
            r.batch_size if training else max(r.batch_size, 256),
            augmentation=self.augmentation if training else None,
            drop_last=training and bool(r.mixup or r.cutmix),
            seed=self.seed,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            channels_last=r.channels_last,
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: averaged ones where the recipe averages."""
        return (self.ema.module if self.ema is not None else self.model).state_dict()

    def prepare(self, folder: Path | None, tell: Callable[[str, int, int], None]) -> None:
        """Let the objective prepare itself: the first process alone, which may write, then the others."""
        first = self.accelerator.is_main_process
        training = Training(
            self.data, self.augmentation, self.seed, self.accelerator.device, folder, writes=first, tell=tell
        )
        if first:
            self.objective.prepare(training)
        self.accelerator.wait_for_everyone()
        if not first:
            self.objective.prepare(training)

    def run_epoch(self, on_step: Callable[[Progress], None] | None = None) -> EpochResult:
        """Train for one more epoch, then evaluate on the held-out images."""
        start = time.perf_counter()
        set_seed(_mixed(self.seed, self.epoch, self.accelerator.process_index))
        self.train_loader.set_epoch(self.epoch)
        self._evaluations = [0, 0]
        self._raise_drop_path()
        loss, accuracy, figures = self._train(on_step, start)
        self._share_statistics()
        forward, backward = self._evaluations
        self.epoch += 1
        validation = None
        if self.validation_loader is not None:
            validation = self.judge(self.validation_loader)
        return EpochResult(
            epoch=self.epoch,
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=loss,
            train_accuracy=accuracy,
            validation=validation,
            seconds=time.perf_counter() - start,
            evaluations=forward / len(self.train_loader) if self._implicit else None,
            backward_evaluations=backward / len(self.train_loader) if self._implicit else None,
            figures=figures,
        )

    def _raise_drop_path(self) -> None:
        """DARTS, as published: from 0 in the first epoch linearly towards the recipe's rate."""
        rate, set_drop_path = self.recipe.drop_path_rate, getattr(self.model, "set_drop_path", None)
        if rate and set_drop_path is not None:
            set_drop_path(rate * self.epoch / self.recipe.epochs)

    def _share_statistics(self) -> None:
        """Average the norms' running means and variances over the processes, which each have their own."""
        processes = self.accelerator.num_processes
        if processes > 1:
            for module in (self.model, *([] if self.ema is None else [self.ema.module])):
                distribute_bn(module, processes, reduce=True)  # type: ignore[no-untyped-call, unused-ignore]

    def _train(
        self, on_step: Callable[[Progress], None] | None, start: float
    ) -> tuple[float, float | None, dict[str, float]]:
        steps = len(self.train_loader)
        done = self.epoch * steps
        self.wrapped.train()
        totals = torch.zeros(3, dtype=torch.float64)  # loss, correct, images
        judged = self.mixup is None  # targets of mixed images are not right or wrong
        figures: dict[str, float] = {}
        size = size_in(self.epoch, self.recipe, self.data.image_size)
        for i, (images, labels) in enumerate(self.train_loader):
            self.schedule.step_update(done + i)
            images, targets = resized(images, size), labels
            if self.mixup is not None:
                images, targets = self.mixup(images, labels)
            self.objective.begin_step(Place(self.epoch + i / steps, self.train_loader.rows))
            loss, outcome = self._step(images, targets, i)
            if self.ema is not None:
                self.ema.update(self.model, step=done + i + 1)
            judged = judged and outcome.logits is not None
            correct = 0 if outcome.logits is None else (outcome.logits.argmax(dim=1) == labels).sum().item()
            totals += torch.tensor([loss * len(labels), correct, len(labels)], dtype=torch.float64)
            for name, value in outcome.figures.items():
                figures[name] = figures.get(name, 0.0) + float(value) * len(labels)
            if on_step is not None:
                speed = totals[2].item() * self.accelerator.num_processes / (time.perf_counter() - start)
                mean = totals[0].item() / totals[2].item()
                on_step(Progress(self.epoch + 1, self.recipe.epochs, i + 1, steps, mean, speed))
        images_here = totals[2].item()
        totals = self.accelerator.reduce(totals.to(self.accelerator.device, _wide(self.accelerator.device)))
        accuracy = (totals[1] / totals[2]).item() if judged else None
        means = {name: value / images_here for name, value in figures.items()}  # of the first process
        return (totals[0] / totals[2]).item(), accuracy, means

    def _step(self, images: Tensor, targets: Tensor, i: int) -> tuple[float, Outcome]:
        self.optimizer.zero_grad()
        with self._compiled(lambda: self.accelerator.backward(self._forward(images, targets).loss)):
            outcome = self._forward(images, targets)
            value = outcome.loss.item()
            if not math.isfinite(value):
                place = where_it_began(self.model, images)
                raise TrainingDiverged(
                    f"the loss became {value} at step {i + 1} of epoch {self.epoch + 1}; "
                    f"it began in {place}. The last good checkpoint is kept; try a lower lr, a longer "
                    "warm-up or grad_clip"
                )
            self.accelerator.backward(outcome.loss)
        if self.recipe.grad_clip:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        if self._implicit:
            self._evaluations[0] += max(m.evaluations for m in self._implicit)
            self._evaluations[1] += max(m.backward_evaluations for m in self._implicit)
        figures = {name: scalar.detach() for name, scalar in outcome.figures.items()}
        logits = None if outcome.logits is None else outcome.logits.detach()
        return value, Outcome(outcome.loss.detach(), logits, figures)

    def _compiled(self, plain: Callable[[], object]) -> AbstractContextManager[None]:
        return blamed_on_compiling(plain) if self.recipe.compile else nullcontext()

    def _forward(self, images: Tensor, targets: Tensor) -> Outcome:
        with self.accelerator.autocast():
            return self._outcome(images, targets)

    def _outcome(self, images: Tensor, targets: Tensor) -> Outcome:
        try:
            outcome = Outcome(*self.wrapped(images, targets))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a norm of the network cannot train on {len(images)} image(s) of this size ({error}): "
                "take a larger batch_size, or larger images"
            ) from error
        if not outcome.loss.requires_grad:
            raise UserError(
                "the loss does not depend on the network's parameters: its forward computes without "
                "gradients, as an optimised network does; train the network that it was made of"
            )
        return outcome

    def judge(self, loader: Loader, weights: nn.Module | None = None) -> Evaluation:
        """Evaluate over all processes, with the weights that would be kept (or those of another module)."""
        model = weights or (self.ema.module if self.ema is not None else self.model)

        def tallied() -> Tensor:
            with self.accelerator.autocast() if self.recipe.precision != "no" else nullcontext():
                return tally(model, loader, self.num_classes)

        with self._compiled(tallied):
            total = tallied()
        total = self.accelerator.reduce(total.to(_wide(self.accelerator.device)))
        try:
            return evaluation(total.double(), self.num_classes)
        except NotFinite as error:
            raise TrainingDiverged(
                f"after epoch {self.epoch} {error}. The checkpoint before it is kept; try a lower lr, a "
                "longer warm-up or grad_clip"
            ) from error

    def state(self) -> dict[str, Any]:
        """Everything a resumed training needs besides model, data, recipe and objective."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "objective": self.objective.state(),
            "extra": None if self.extra is None else self.extra.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to where `state()` was taken; a `UserError` if it was taken of something else."""
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            if self.extra is not None:
                self.extra.load_state_dict(state["extra"])
            self.objective.load_state(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the training state does not fit this run ({type(error).__name__}: {first})"
            ) from error
        self.epoch, self.best_accuracy = state["epoch"], state["best_accuracy"]


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, different for different ones."""
    value = 0
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**31 - 1)
    return value


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
