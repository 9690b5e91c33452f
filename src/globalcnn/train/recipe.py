"""`Recipe`: everything that decides how a network is trained, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..data.transforms import checked_rand_augment
from ..errors import UserError, UserTypeError, unknown_name
from .optimizers import leaves_weights_to_adamw, usual_rates

SCHEDULES = ("cosine", "step", "exponential", "constant")
PRECISIONS = ("no", "bf16", "fp16")
LARGEST = 1e30  # of any number: float32 has room for it


def _setting(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Recipe:
    """A training recipe. The defaults are the short modern one; published ones are in `globalcnn.reproduce`.

    Every field can be given on the command line of `globalcnn train` under its own name, with "-" for "_".
    Lengths of time are in epochs, learning rates per optimiser step, batch sizes per process.
    Where learning rate and weight decay are not given, they are the usual ones of the optimiser.

    Raises `UserError` or `UserTypeError` for a value that does not fit.

    >>> Recipe(epochs=5).replace(lr=0.1).lr
    0.1
    >>> Recipe().lr, Recipe(optimizer="sgd").lr, Recipe().replace(optimizer="sgd").lr
    (0.03, 0.1, 0.1)
    """

    name: str = _setting("modern", "what the recipe is called in reports")
    epochs: int = _setting(20, "passes over the training images")
    batch_size: int = _setting(64, "images per step and process")
    optimizer: str = _setting(
        "muon",
        "name of one of timm's optimisers; muon is for dense weights, AdamW for the rest; sgd is Nesterov's",
    )
    lr: float = _setting(
        None,
        "largest learning rate; default 0.03 for muon, 0.1 for sgd, for others their own, as 0.001 of adamw",
    )
    momentum: float = _setting(0.9, "momentum of SGD-like optimisers")
    fallback_lr_scale: float = _setting(
        1.0, "learning rate of the weights that muon leaves to AdamW, as a share of lr"
    )
    optimizer_eps: float | None = _setting(None, "eps of adaptive optimisers; default the optimiser's own")
    weight_decay: float = _setting(
        None, "weight decay; default 0.05 for muon and adamw, where it is decoupled, 0.0005 for others"
    )
    decay_norms_and_biases: bool = _setting(True, "weight decay on norms and biases too, as in older recipes")
    schedule: str = _setting("cosine", "cosine, step (at milestones), exponential or constant")
    milestones: tuple[int, ...] = _setting((), "epochs at which a step schedule multiplies by decay-rate")
    decay_rate: float = _setting(0.1, "factor of a step or exponential schedule")
    decay_epochs: float = _setting(1.0, "epochs between the factors of an exponential schedule")
    warmup_epochs: float = _setting(1.0, "epochs of linear warm-up from a small learning rate")
    lr_noise: tuple[float, ...] = _setting(
        (), "start and end, as shares of the epochs, of a learning rate that is noisy by up to 67 percent"
    )
    label_smoothing: float = _setting(0.1, "share of the target spread over all classes")
    mixup: float = _setting(0.0, "alpha of mixup; 0 is off")
    cutmix: float = _setting(0.0, "alpha of CutMix; 0 is off")
    ema_decay: float = _setting(0.998, "decay of the averaged weights, which are kept and judged; 0 is off")
    grad_clip: float = _setting(0.0, "largest norm of the gradient; 0 is off")
    first_image_size: int = _setting(
        0, "shorter side of the images in the first epoch, which grow to their own size; 0 is off"
    )
    crop_padding: int = _setting(4, "random crop after padding by so many pixels; 0 is off")
    flip: bool = _setting(True, "random horizontal flip (switched off for digits)")
    cutout: int = _setting(0, "side of the square that cutout blanks, in pixels; 0 is off")
    rand_augment: str = _setting("", "timm's RandAugment, such as rand-m9-mstd0.5; off if empty")
    random_erasing: float = _setting(0.0, "share of images in which a rectangle becomes noise")
    drop_rate: float = _setting(0.0, "dropout before the classifier")
    drop_path_rate: float = _setting(
        0.0, "stochastic depth, where the model has it; in DARTS it rises to this over the epochs"
    )
    auxiliary_weight: float = _setting(0.0, "weight of an auxiliary head's loss, where the model has one")
    precision: str = _setting("no", "mixed precision: no, bf16 or fp16")
    validation: float = _setting(0.1, "share of the training images held out to choose the best epoch")
    channels_last: bool = _setting(False, "train in the channels-last memory format")
    compile: bool = _setting(False, "compile the network with torch.compile")

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            for name, usual in usual_rates(self.optimizer).items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, usual)
        for name in ("milestones", "lr_noise"):
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), str(f.type))
        _check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _check(self.lr > 0, "lr", self.lr, "above 0")
        _check(0 < self.decay_rate <= 1, "decay_rate", self.decay_rate, "above 0 and at most 1")
        _check(self.fallback_lr_scale > 0, "fallback_lr_scale", self.fallback_lr_scale, "above 0")
        if self.fallback_lr_scale != 1 and not leaves_weights_to_adamw(self.optimizer):
            raise UserError(
                f"recipe: fallback_lr_scale={self.fallback_lr_scale} is for muon and its variants, and "
                f"optimizer={self.optimizer!r} has one rate for all weights: leave it at 1, or take "
                "optimizer='muon'"
            )
        eps = self.optimizer_eps
        _check(eps is None or eps > 0, "optimizer_eps", eps, "above 0")
        _check(self.decay_epochs > 0, "decay_epochs", self.decay_epochs, "above 0")
        _check(self.precision in PRECISIONS, "precision", self.precision, "one of " + ", ".join(PRECISIONS))
        for name in ("momentum", "label_smoothing", "ema_decay", "validation", "drop_rate", "drop_path_rate"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        for name in (
            "weight_decay", "warmup_epochs", "mixup", "cutmix", "grad_clip", "first_image_size",
            "crop_padding", "cutout", "auxiliary_weight",
        ):  # fmt: skip
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        _check(0 <= self.random_erasing <= 1, "random_erasing", self.random_erasing, "from 0 to 1")
        checked_rand_augment(self.rand_augment)
        noisy = not self.lr_noise or (
            len(self.lr_noise) == 2 and 0 <= self.lr_noise[0] < self.lr_noise[1] <= 1
        )
        _check(noisy, "lr_noise", self.lr_noise, "two rising shares of the epochs from 0 to 1, or none")
        rising = all(0 < a < b for a, b in zip((0.5, *self.milestones), self.milestones, strict=False))
        _check(rising, "milestones", self.milestones, "rising epochs above 0")
        if self.schedule == "step":
            _check(bool(self.milestones), "milestones", self.milestones, "given for a step schedule")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(
                f"batch_size={self.batch_size} is odd, and mixup and CutMix mix images in pairs: "
                "take an even batch size, or mixup=0 and cutmix=0"
            )

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed.

        With another optimiser, a learning rate or weight decay that was usual for the former becomes the one
        that is usual for the new one, and a rate of AdamW's beside Muon is dropped with Muon.
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            raise unknown_name("recipe field", unknown[0], [f.name for f in fields(self)])
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            former = {
                name: value
                for name, value in usual_rates(self.optimizer).items()
                if getattr(self, name) == value
            }
            changes = {**dict.fromkeys(former), **changes}
            if not leaves_weights_to_adamw(changes["optimizer"]):
                changes = {"fallback_lr_scale": 1.0, **changes}
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """The inverse of `as_dict`."""
        return Recipe().replace(**values)


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe in a file of an older version, with defaults for those that it did not know."""
    return {**Recipe().as_dict(), **values}


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UserError(f"recipe: {name}={value!r} must be {allowed}")


def _check_type(name: str, value: object, declared: str) -> None:
    expected: tuple[type, ...]
    if declared == "bool":
        expected = (bool,)
    elif declared == "int":
        expected = (int,)
    elif declared == "str":
        expected = (str,)
    elif declared.startswith("tuple"):
        expected = (tuple,)
    else:
        expected = (int, float, type(None)) if "None" in declared else (int, float)
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)
    if isinstance(value, tuple):
        kinds = (int,) if "int" in declared else (int, float)
        wrong = wrong or any(isinstance(v, bool) or not isinstance(v, kinds) for v in value)
    if wrong:
        raise UserTypeError(f"recipe: {name}={value!r} must be of type {declared}")
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise UserError(f"recipe: {name}={value!r} must be finite")
    if isinstance(value, (int, float)) and abs(value) > LARGEST:
        raise UserError(f"recipe: {name}={value!r} must be at most {LARGEST:g}")


def suited_to(recipe: Recipe, data: str) -> Recipe:
    """The default recipe as it suits the data: digits have a handedness, so they are not flipped; the marks
    of the generated data are as near as 2 pixels to the edge, and a wider crop would cut them off.

    Recipes of other names, and recipes for other data, stay as they are.
    """
    if recipe.name == Recipe().name and data in ("digits", "mnist"):
        return recipe.replace(flip=False, crop_padding=2)
    if recipe.name == Recipe().name and data in ("reach", "reach-curve"):
        return recipe.replace(crop_padding=2)
    return recipe
