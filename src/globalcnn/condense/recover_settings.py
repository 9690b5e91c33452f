"""How a condensed network is brought back, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..train.objectives_distill import LOSSES
from ..train.teacher import VIEWS


@dataclass(frozen=True)
class Recovery:
    """How a condensed network is brought back.

    repair_epochs: in which the new stages learn features alone, 0 for none; repair_lr: their largest learning
    rate (AdamW); loss: "kd" or "dist", None for kd below 20 classes; temperature, weight, views: as in
    `Distillation`; feature_weight: of the features before pooling at the start of the end-to-end phase, 0 for
    none; feature_share: the share of its epochs over which that weight falls to 0; few_images: with fewer
    training images per class than this the classifier stays as it is, and features alone are learned.
    """

    repair_epochs: int = 2
    repair_lr: float = 2e-3
    loss: str | None = None
    temperature: float = 4.0
    weight: float | None = None
    views: int = VIEWS
    feature_weight: float = 1.0
    feature_share: float = 0.3
    few_images: int = 50

    def __post_init__(self) -> None:
        for name in ("repair_epochs", "views", "few_images"):
            value: Any = getattr(self, name)
            if type(value) is not int or not 0 <= value <= 10**6:
                raise UserError(f"{name}={value!r} must be a whole number of 0 or more")
        for name, lowest, most in (
            ("repair_lr", 0.0, 1e3),
            ("temperature", 0.0, 1e6),
            ("feature_weight", -1e-12, 1e6),
            ("feature_share", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest < value <= most:
                raise UserError(
                    f"{name}={value!r} must be a number above {max(lowest, 0):g}, at most {most:g}"
                )
        if self.loss is not None and self.loss not in LOSSES:
            raise UserError(f"loss={self.loss!r} must be one of {', '.join(LOSSES)}, or None")
