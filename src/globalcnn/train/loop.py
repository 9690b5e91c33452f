"""The training loop: epochs over a loader, evaluation, checkpoints, resuming bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from ..data import Augmentation, DataSource, Loader
from ..errors import UserError, unknown_name
from ..nn.solving import SolveBlock
from .divergence import TrainingDiverged, where_it_began
from .evaluate import Evaluation, evaluation, tally
from .recipe import Recipe
from .schedule import Schedule


@dataclass(frozen=True)
class Progress:
    """Where the training is, after a step. epoch counts from 1; `step` of `steps` within it."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch. train_loss, train_accuracy: running, on augmented images; validation: None if no
    images are held out; seconds: training and validation; evaluations, backward_evaluations: how often a
    layer that solves evaluated its function, the mean over the steps (None if the network solves nothing).
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float | None
    validation: Evaluation | None
    seconds: float
    evaluations: float | None = None
    backward_evaluations: float | None = None


def make_accelerator(device: str, precision: str, *, unused_parameters: bool = False) -> Accelerator:
    """Accelerate's view of this process: device, precision, and how many processes there are.

    device: "auto", "cpu", "cuda" or "mps" (with torchrun each process takes its own).
    unused_parameters: whether a step may leave parameters without gradient (auxiliary heads, stochastic
    depth).
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(
            f"device={device!r} must be auto, cpu, cuda or mps (choose a card by CUDA_VISIBLE_DEVICES)"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda', but torch finds no CUDA device here; take --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps', but torch finds no such device here; take --device cpu")
    if AcceleratorState._shared_state:
        # accelerate keeps one state per process; a second training may want another precision
        AcceleratorState._reset_state(reset_partial_state=False)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)]
    return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)


class Trainer:
    """One training: model, data and recipe brought together; `run_epoch` does the next epoch.

    All randomness of an epoch follows from (seed, epoch, process), so a training that is resumed at an
    epoch's end goes on exactly as if it had never stopped.
    """

    def __init__(
        self, model: nn.Module, data: DataSource, recipe: Recipe, accelerator: Accelerator, *, seed: int
    ) -> None:
        self.recipe, self.data, self.accelerator, self.seed = recipe, data, accelerator, seed
        self.num_classes = len(data.classes)
        self.train_loader = self._loader("train")
        self.validation_loader = self._loader("val") if data.size("val") else None
        self.model = model.to(accelerator.device)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = self._make_ema()
        self._with_auxiliary = recipe.auxiliary_weight > 0 and hasattr(model, "forward_with_auxiliary")
        optimizer = self._make_optimizer()
        self.schedule = Schedule(optimizer, recipe, steps=len(self.train_loader), seed=seed)
        if recipe.compile:
            self.model.compile()
        self.mixup = self._make_mixup()
        trained = _WithAuxiliary(self.model) if self._with_auxiliary else self.model
        self.wrapped, self.optimizer = accelerator.prepare(trained, optimizer)
        self._solves = [m for m in self.model.modules() if isinstance(m, SolveBlock)]
        self._evaluations = [0, 0]
        self.epoch = 0
        self.best_accuracy: float | None = None

    def _loader(self, split: str) -> Loader:
        r, training = self.recipe, split == "train"
        augmentation = Augmentation(
            crop_padding=r.crop_padding,
            flip=r.flip,
            cutout=r.cutout,
            rand_augment=r.rand_augment,
            random_erasing=r.random_erasing,
        )
        return self.data.loader(
            split,
            r.batch_size if training else max(r.batch_size, 256),
            augmentation=augmentation if training else None,
            drop_last=training and bool(r.mixup or r.cutmix),
            seed=self.seed,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            channels_last=r.channels_last,
        )

    def _make_ema(self) -> ModelEmaV3 | None:
        return (
            ModelEmaV3(self.model, decay=self.recipe.ema_decay, use_warmup=True)
            if self.recipe.ema_decay
            else None
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        r = self.recipe
        extra: dict[str, Any] = {} if r.optimizer_eps is None else {"eps": r.optimizer_eps}
        try:
            return create_optimizer_v2(
                self.model,
                opt=r.optimizer,
                lr=r.lr,
                weight_decay=r.weight_decay,
                momentum=r.momentum,
                filter_bias_and_bn=not r.decay_norms_and_biases,
                **extra,
            )
        except ValueError as error:
            if r.optimizer in list_optimizers():
                raise
            known = [str(name) for name in list_optimizers()]
            raise unknown_name(
                "optimizer", r.optimizer, known, way_out="timm's names, such as sgd"
            ) from error

    def _make_mixup(self) -> Mixup | None:
        r = self.recipe
        if not (r.mixup or r.cutmix):
            return None
        return Mixup(  # type: ignore[no-untyped-call, unused-ignore]
            mixup_alpha=r.mixup,
            cutmix_alpha=r.cutmix,
            label_smoothing=r.label_smoothing,
            num_classes=self.num_classes,
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: averaged ones where the recipe averages."""
        return (self.ema.module if self.ema is not None else self.model).state_dict()

    def run_epoch(self, on_step: Callable[[Progress], None] | None = None) -> EpochResult:
        """Train for one more epoch, then judge it on the held-out images."""
        start = time.perf_counter()
        set_seed(_mixed(self.seed, self.epoch, self.accelerator.process_index))
        self.train_loader.set_epoch(self.epoch)
        self._evaluations = [0, 0]
        self._raise_drop_path()
        loss, accuracy = self._train(on_step, start)
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
            evaluations=forward / len(self.train_loader) if self._solves else None,
            backward_evaluations=backward / len(self.train_loader) if self._solves else None,
        )

    def _raise_drop_path(self) -> None:
        """DARTS, as published: from 0 in the first epoch linearly towards the recipe's rate."""
        rate, set_drop_path = self.recipe.drop_path_rate, getattr(self.model, "set_drop_path", None)
        if rate and set_drop_path is not None:
            set_drop_path(rate * self.epoch / self.recipe.epochs)

    def _share_statistics(self) -> None:
        """Each process has its own running means and variances of the norms: from here on their averages."""
        processes = self.accelerator.num_processes
        if processes > 1:
            for module in (self.model, *([] if self.ema is None else [self.ema.module])):
                distribute_bn(module, processes, reduce=True)  # type: ignore[no-untyped-call, unused-ignore]

    def _train(self, on_step: Callable[[Progress], None] | None, start: float) -> tuple[float, float | None]:
        steps = len(self.train_loader)
        done = self.epoch * steps
        self.wrapped.train()
        totals = torch.zeros(3, dtype=torch.float64)  # loss, correct, images
        for i, (images, labels) in enumerate(self.train_loader):
            self.schedule.step_update(done + i)
            targets = labels
            if self.mixup is not None:
                images, targets = self.mixup(images, labels)
            loss, logits = self._step(images, targets, i)
            if self.ema is not None:
                self.ema.update(self.model, step=done + i + 1)
            correct = (logits.argmax(dim=1) == labels).sum().item()
            totals += torch.tensor([loss * len(labels), correct, len(labels)], dtype=torch.float64)
            if on_step is not None:
                speed = totals[2].item() * self.accelerator.num_processes / (time.perf_counter() - start)
                mean = totals[0].item() / totals[2].item()
                on_step(Progress(self.epoch + 1, self.recipe.epochs, i + 1, steps, mean, speed))
        totals = self.accelerator.reduce(totals.to(self.accelerator.device, _wide(self.accelerator.device)))
        accuracy = None if self.mixup is not None else (totals[1] / totals[2]).item()
        return (totals[0] / totals[2]).item(), accuracy

    def _step(self, images: Tensor, targets: Tensor, i: int) -> tuple[float, Tensor]:
        r = self.recipe
        smoothing = 0.0 if self.mixup is not None else r.label_smoothing
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            output = self.wrapped(images)
            logits, auxiliary = output if self._with_auxiliary else (output, None)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
            if auxiliary is not None:
                side = F.cross_entropy(auxiliary.float(), targets, label_smoothing=smoothing)
                loss = loss + r.auxiliary_weight * side
        value = loss.item()
        if not math.isfinite(value):
            place = where_it_began(self.model, images)
            raise TrainingDiverged(
                f"the loss became {value} at step {i + 1} of epoch {self.epoch + 1}; it began in {place}. "
                "The last good checkpoint is kept; try a lower lr, a longer warm-up or grad_clip"
            )
        self.accelerator.backward(loss)
        if r.grad_clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), r.grad_clip)
        self.optimizer.step()
        if self._solves:
            self._evaluations[0] += max(m.evaluations for m in self._solves)
            self._evaluations[1] += max(m.backward_evaluations for m in self._solves)
        return value, logits.detach()

    def judge(self, loader: Loader, weights: nn.Module | None = None) -> Evaluation:
        """Evaluate over all processes, with the weights that would be kept (or those of another module)."""
        model = weights or (self.ema.module if self.ema is not None else self.model)
        with self.accelerator.autocast() if self.recipe.precision != "no" else nullcontext():
            total = tally(model, loader, self.num_classes)
        total = self.accelerator.reduce(total.to(_wide(self.accelerator.device)))
        return evaluation(total.double(), self.num_classes)

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs besides model, data and recipe."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to where `state()` was taken."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_accuracy = state["epoch"], state["best_accuracy"]


class _WithAuxiliary(nn.Module):
    """Makes the auxiliary head part of `forward`, which is what multi-process wrappers follow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.forward_with_auxiliary(images)  # type: ignore[operator, no-any-return]


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, different for different ones."""
    value = 0
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**31 - 1)
    return value


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
