"""Distillation for a network whose features have other channels than the original's."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from globalcnn.condense import Recovery
from globalcnn.data import DataSource
from globalcnn.graph import trace_shapes
from globalcnn.train import Distillation, FeatureError, Objective, Recipe, Teacher
from globalcnn.train.objectives import Outcome, Place, Training
from globalcnn.train.objectives_distill import loss_for
from globalcnn.train.objectives_features import before_pooling, captured, normalised_error
from globalcnn.train.teacher import why_live

from .original import Original


@final
class ProjectedFeatures(Objective):
    """`Distillation`, and the error of the features before pooling after a learned 1x1 convolution to the
    channels of the original.

    Source: Romero et al., "FitNets: Hints for thin deep nets", ICLR 2015, with a convolution of 1x1.
    """

    def __init__(self, logits: Distillation, features: FeatureError, *, channels: tuple[int, int]) -> None:
        self.logits, self.features = logits, features
        self.fixed_views = logits.fixed_views
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.projection = nn.Conv2d(*channels, 1)
        self._epochs = 0.0

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module:
        self.logits.setup(model, device=device)
        return self.projection.to(device)

    def prepare(self, training: Training) -> None:
        self.logits.prepare(training)

    def begin_step(self, place: Place) -> None:
        self._epochs = place.epochs
        self.logits.begin_step(place)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        share, names = self.features.weight_at(self._epochs), {self.features.module}
        if not share:
            return self.logits(model, images, targets)
        with captured(model, outputs=names, copied=False) as (_, ours):
            found = self.logits(model, images, targets)
        with captured(self.logits.teacher.model, outputs=names) as (_, theirs):
            self.logits.teacher(images)
        name = self.features.module
        error = normalised_error(self.projection(ours[name]), theirs[name])
        return Outcome(found.loss + share * error, found.logits, {**found.figures, "features": error})

    def describe(self) -> dict[str, Any]:
        f = self.features
        return {**self.logits.describe(), "projected_features": [f.module, f.weight, f.epochs]}


def distillation(
    original: Original, student: nn.Module, data: DataSource, recipe: Recipe, recovery: Recovery
) -> Objective:
    """What `condense.recover` minimises end to end, for a student with other channels."""
    reason = why_live(data, recipe)
    logits = Distillation(
        Teacher(original.model),
        loss=loss_for(len(data.classes)) if recovery.loss is None else recovery.loss,
        temperature=recovery.temperature,
        weight=recovery.weight,
        views=0 if reason else recovery.views,
        label_smoothing=recipe.label_smoothing,
    )
    image = original.example(1)
    name = before_pooling(original.model, original.model, image)
    epochs = max(1.0, round(recovery.feature_share * recipe.epochs))
    ours, theirs = (
        trace_shapes(net, image).of(name)[0].outputs[0].shape[1] for net in (student, original.model)
    )
    features = FeatureError(name, weight=recovery.feature_weight, epochs=epochs)
    return ProjectedFeatures(logits, features, channels=(ours, theirs))
