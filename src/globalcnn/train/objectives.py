"""Objectives: what a training minimises, as functions of network, images and targets.

The loop uses only the interface `Objective`. Cross entropy and auxiliary heads are here, distillation in
`objectives_distill.py`, the matching of features in `objectives_features.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Augmentation, DataSource
from ..errors import UserError, UserTypeError
from .recipe import Recipe

AUXILIARY_WEIGHT = 0.4  # published with DARTS


class Outcome(NamedTuple):
    """The result of an objective for one batch.

    loss: a scalar to differentiate; logits: (N, classes) of the network itself, for the running accuracy, or
    None if the objective does not compute them; figures: further scalars by name, whose means over an epoch
    are reported.
    """

    loss: Tensor
    logits: Tensor | None
    figures: Mapping[str, Tensor]


class Place(NamedTuple):
    """Where a training is before a step.

    epochs: how many have passed, with the share of the present one; rows: which fixed view of which image
    each row of the batch shows, as `Loader.rows`.
    """

    epochs: float
    rows: Tensor | None


@dataclass(frozen=True)
class Training:
    """What an objective may prepare itself from before the first step.

    seed: of order and augmentation; folder: the run folder, None without one; writes: whether this process
    is the one that writes there; tell: takes what is prepared, and how many images of how many are done.
    """

    data: DataSource
    augmentation: Augmentation
    seed: int
    device: torch.device
    folder: Path | None
    writes: bool
    tell: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)


class Objective(ABC):
    """What a training minimises.

    Called once per step, inside autocast if the recipe has mixed precision, and inside the wrapper of several
    processes, so that gradients of `model` and of its own modules are synchronised.

    fixed_views: how many fixed augmented views of each training image it is computed on; 0 (default) for new
    random numbers every epoch. See `globalcnn.data.Augmentation`.
    """

    fixed_views: int = 0

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module | None:
        """Called once before the first step, with the network on its device.

        Returns modules to train along with the network (such as projections of features), or None. They are
        optimised and kept in the training state, not among the network's weights.
        """
        return None

    def prepare(self, training: Training) -> None:
        """Called once per process, on the first one before the others, after `load_state` and before the
        first step, unless no epoch is left to train.
        """
        return

    def begin_step(self, place: Place) -> None:
        """Called before each step."""
        return

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        """The loss of one batch.

        images: float (N, C, H, W), normalised; targets: int64 (N,) of class numbers, or float (N, classes) of
        shares if the recipe mixes images.
        """

    def state(self) -> dict[str, Any]:
        """Plain values and tensors that a resumed training needs; the default keeps nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state()` was taken."""
        return

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its name and settings as plain values, for run.json; a run is resumed with the same ones only."""


@final
class CrossEntropy(Objective):
    """Cross entropy of the logits.

    label_smoothing: share of the target spread over all classes, 0 <= label_smoothing < 1, for targets that
    are class numbers. Targets that are shares are taken as they are.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> round(CrossEntropy()(nn.Identity(), logits, torch.tensor([0])).loss.item(), 4)
    0.1269
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = _share("label_smoothing", label_smoothing)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        logits = only_logits(model(images))
        return Outcome(self.loss(logits, targets), logits, {})

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def describe(self) -> dict[str, Any]:
        return {"name": "cross_entropy", "label_smoothing": self.label_smoothing}


@final
class WithAuxiliaryHeads(Objective):
    """Cross entropy of the logits and, with a weight, of those of the network's auxiliary heads.

    The network has a method `forward_with_auxiliary(images)` that returns its logits and those of one or more
    auxiliary heads. Source: Liu, Simonyan and Yang, "DARTS", ICLR 2019, whose weight is 0.4.
    """

    def __init__(self, *, weight: float = AUXILIARY_WEIGHT, label_smoothing: float = 0.0) -> None:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"weight={weight!r} of auxiliary heads must be a number above 0")
        self.weight = float(weight)
        self._main = CrossEntropy(label_smoothing=label_smoothing)

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module | None:
        if not hasattr(model, "forward_with_auxiliary"):
            raise UserError(
                f"the network {type(model).__name__} has no method forward_with_auxiliary(images), which "
                "gives the logits of its auxiliary heads: train it with CrossEntropy()"
            )
        return None

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        logits, *beside = model.forward_with_auxiliary(images)  # type: ignore[operator]
        loss = self._main.loss(logits, targets)
        for head in beside:
            loss = loss + self.weight * self._main.loss(head, targets)
        return Outcome(loss, logits, {})

    def describe(self) -> dict[str, Any]:
        return {
            "name": "with_auxiliary_heads",
            "weight": self.weight,
            "label_smoothing": self._main.label_smoothing,
        }


def only_logits(output: object) -> Tensor:
    """What a network returned in training mode, if it is a tensor; else a `UserError`."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"in training mode the network returns {type(output).__name__}, not logits alone: build it "
            "without auxiliary outputs (torchvision's: aux_logits=False), or write an Objective that "
            "takes them"
        )
    return output


def default_objective(model: nn.Module, recipe: Recipe) -> Objective:
    """Cross entropy; with auxiliary heads where the network has them and the recipe weighs them."""
    if recipe.auxiliary_weight > 0 and hasattr(model, "forward_with_auxiliary"):
        return WithAuxiliaryHeads(weight=recipe.auxiliary_weight, label_smoothing=recipe.label_smoothing)
    return CrossEntropy(label_smoothing=recipe.label_smoothing)


class WithObjective(nn.Module):
    """Network, objective and the objective's modules as one, which wrappers of several processes follow."""

    def __init__(self, model: nn.Module, objective: Objective, extra: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.extra = extra
        self._objective = objective

    def forward(self, images: Tensor, targets: Tensor) -> Outcome:
        """One batch."""
        return self._objective(self.model, images, targets)


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserTypeError(f"{name}={value!r} must be a number")
    if not 0 <= value < 1:
        raise UserError(f"{name}={value!r} must be at least 0 and below 1")
    return float(value)
