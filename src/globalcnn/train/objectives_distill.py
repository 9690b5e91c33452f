"""Distillation: a network learns from labels and from the logits of a trained one, its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, UserTypeError, unknown_name
from .folder import TEACHER
from .objectives import CrossEntropy, Objective, Outcome, Place, Training, only_logits
from .objectives_features import FeatureError, captured, normalised_error, submodule
from .teacher import VIEWS, Teacher, kept_logits, mean_teacher

MANY_CLASSES: Final = (
    20  # from here on the relations between classes and images carry more than softened shares
)
WEIGHTS: Final = {"kd": 0.9, "dist": 2.0}


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the Kullback-Leibler divergence of the student's softened shares from the teacher's.

    student, teacher: logits (N, classes). The mean over the batch. Source: Hinton, Vinyals and Dean,
    "Distilling the knowledge in a neural network", 2015, section 2.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> kd_loss(logits, logits, 4.0).item()
    0.0
    """
    ours, theirs = ((x.float() / temperature).log_softmax(dim=1) for x in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times one minus Pearson's correlation of the softened shares, between and within the classes.

    Between: of the shares of one image over the classes, the mean over the images. Within: of the shares of
    one class over the images of the batch, the mean over the classes. The two are added. student, teacher:
    logits (N, classes). Source: Huang, You, Wang, Qian and Xu, "Knowledge distillation from a stronger
    teacher", NeurIPS 2022, equations 7 to 9.

    >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    >>> abs(dist_loss(logits, logits, 1.0).item()) < 1e-6
    True
    """
    ours, theirs = ((x.float() / temperature).softmax(dim=1) for x in (student, teacher))
    between = 1 - _correlation(ours, theirs).mean()
    within = 1 - _correlation(ours.t(), theirs.t()).mean()
    return temperature**2 * (between + within)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of each row of (rows, entries) with its like."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


LOSSES: Final[dict[str, Callable[[Tensor, Tensor, float], Tensor]]] = {"kd": kd_loss, "dist": dist_loss}


def loss_for(classes: int) -> str:
    """The distillation that suits so many classes: "kd" below 20, "dist" from there on."""
    return "kd" if classes < MANY_CLASSES else "dist"


@final
class Distillation(Objective):
    """Learning from labels and from a teacher.

    The loss is, with the cross entropy CE of the labels,

    - for loss="kd": (1 - weight) CE + weight `kd_loss`, with a weight of 0.9 unless given;
    - for loss="dist": CE + weight `dist_loss`, with a weight of 2 unless given.

    To it comes `features`, where given: the error of the features before pooling, with a weight that fades.
    With `only_features` nothing else is minimised, for data with few images per class.

    teacher: see `globalcnn.train.Teacher`; of several the mean of their logits counts.
    temperature: divides both networks' logits.
    views: the teacher's logits are computed once over so many fixed augmented views of each training image,
        kept in the run folder, and every epoch shows one view of each image; 0 runs the teacher in every
        step, on any data. A feature error runs the teacher too, as long as it has a weight.
    label_smoothing: of the labels' cross entropy.
    """

    def __init__(
        self,
        teacher: Teacher | Sequence[Teacher],
        *,
        loss: str = "kd",
        temperature: float = 4.0,
        weight: float | None = None,
        views: int = VIEWS,
        label_smoothing: float = 0.0,
        features: FeatureError | None = None,
        only_features: bool = False,
    ) -> None:
        teachers = tuple(teacher) if isinstance(teacher, (list, tuple)) else (teacher,)
        for one in teachers:
            if not isinstance(one, Teacher):
                raise UserTypeError(
                    "teacher must be a Teacher, such as Teacher(model), or a list of them, not "
                    f"{type(one).__name__}"
                )
        if not teachers:
            raise UserError("teacher=[] holds no teacher: give one or more, such as [Teacher(model)]")
        if loss not in LOSSES:
            raise unknown_name("distillation", loss, LOSSES)
        if isinstance(views, bool) or not isinstance(views, int) or not 0 <= views <= 1000:
            raise UserError(f"views={views!r} must be a whole number from 0 (a live teacher) to 1000")
        if only_features and features is None:
            raise UserError("only_features=True needs features=FeatureError(...)")
        if only_features and features is not None and features.epochs is not None:
            raise UserError(
                "only_features=True minimises nothing else, so its features must not fade: epochs=None"
            )
        self.teacher, self.kind = mean_teacher(teachers), loss
        self.temperature = _above_zero("temperature", temperature)
        self.weight = _above_zero("weight", WEIGHTS[loss] if weight is None else weight)
        if loss == "kd" and self.weight > 1:
            raise UserError(f"weight={weight!r} is the teacher's share of the loss: it must be at most 1")
        self.fixed_views = 0 if only_features else views
        self.features, self.only_features = features, only_features
        self._labels = CrossEntropy(label_smoothing=label_smoothing)
        self._logits: Tensor | None = None
        self._place = Place(0.0, None)
        self._checksum = self.teacher.checksum()

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module | None:
        if self.features is not None:
            submodule(model, self.features.module, "the network")
            submodule(self.teacher.model, self.features.module, "the teacher")
        self.teacher.to(device)
        return None

    def prepare(self, training: Training) -> None:
        if self.fixed_views:
            path = None if training.folder is None else training.folder / TEACHER
            self._logits = kept_logits(self.teacher, training, path).to(training.device)

    def begin_step(self, place: Place) -> None:
        self._place = place

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        share = 0.0 if self.features is None else self.features.weight_at(self._place.epochs)
        names = {self.features.module} if self.features is not None and share else set()
        with captured(model, outputs=names, copied=False) as (_, ours):
            logits = only_logits(model(images))
        theirs: dict[str, Tensor] = {}
        figures: dict[str, Tensor]
        wanted = self._kept()
        if names or wanted is None:
            with captured(self.teacher.model, outputs=names) as (_, theirs):
                live = self.teacher(images)
            wanted = live if wanted is None else wanted
        loss, figures = logits.new_zeros(()), {}
        if not self.only_features:
            loss, figures = self._of_logits(logits, wanted, targets)
        for name in names:
            error = normalised_error(ours[name], theirs[name])
            loss, figures["features"] = loss + share * error, error
        return Outcome(loss, logits, figures)

    def _of_logits(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        labels = self._labels.loss(logits, targets)
        if wanted.shape != logits.shape:
            raise UserError(
                f"the network gives {logits.shape[1]} logits and the teacher {wanted.shape[1]}: they need "
                "the same classes"
            )
        taught = LOSSES[self.kind](logits, wanted, self.temperature)
        share = 1 - self.weight if self.kind == "kd" else 1.0
        return share * labels + self.weight * taught, {"labels": labels, self.kind: taught}

    def _kept(self) -> Tensor | None:
        if self._logits is None or self._place.rows is None:
            return None
        return self._logits[self._place.rows.to(self._logits.device)]

    def describe(self) -> dict[str, Any]:
        fading = self.features
        return {
            "name": "distillation",
            "teacher": self._checksum,
            "loss": self.kind,
            "temperature": self.temperature,
            "weight": self.weight,
            "views": self.fixed_views,
            "label_smoothing": self._labels.label_smoothing,
            "features": None if fading is None else [fading.module, fading.weight, fading.epochs],
            "only_features": self.only_features,
        }


def _above_zero(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserTypeError(f"{name}={value!r} must be a number above 0")
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value!r} must be a finite number above 0")
    return float(value)
