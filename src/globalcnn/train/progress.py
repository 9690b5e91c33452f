"""Progress of a training, and the interface of its reporters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .evaluate import Evaluation


@dataclass(frozen=True)
class Progress:
    """The position of a training after a step. epoch counts from 1; `step` of `steps` within it."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch. train_loss, train_accuracy: running, on augmented images; validation: None if no
    images are held out; seconds: training and validation; evaluations, backward_evaluations: how often an
    implicit layer evaluated its function, the mean over the steps (None if the network has none); figures:
    those that the objective adds, by name.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float | None
    validation: Evaluation | None
    seconds: float
    evaluations: float | None = None
    backward_evaluations: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a line of metrics.jsonl holds them."""
        validation = self.validation
        return {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "train_accuracy": self.train_accuracy,
            "val_loss": None if validation is None else validation.loss,
            "val_accuracy": None if validation is None else validation.accuracy,
            "seconds": round(self.seconds, 3),
            "evaluations": self.evaluations,
            "backward_evaluations": self.backward_evaluations,
            **({"figures": dict(self.figures)} if self.figures else {}),
        }


class Reporter(Protocol):
    """Receives the progress of a training (only on the first of several processes).

    A reporter may also have `preparing(what, done, total)`, called while the objective prepares itself before
    the first step: so many images of so many are done.
    """

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

    def preparing(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def stepped(self, progress: Progress) -> None:
        """Nothing."""

    def finished_epoch(self, result: EpochResult) -> None:
        """Nothing."""
