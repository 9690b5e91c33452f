"""Options of distillation, and the objective that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..data import DataSource
from ..errors import UserError
from ..files import as_list, read_json
from ..models import load_with_card
from ..models.shipped import full_path
from ..models.weights import checksum, read_weights
from ..train import Distillation, Recipe, teacher_for
from ..train.objectives_distill import loss_for
from ..train.teacher import VIEWS, why_live
from .console import say


@dataclass(frozen=True)
class TeacherOptions:
    """Trained networks to learn from."""

    teacher: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Learn also from the logits of the network in this run folder or .safetensors file, or with this name
    among the weights that come with the library; it knows the classes of the data. Given several times: from
    the mean of their logits."""
    teacher_model: str | None = None
    """That network, where its file does not say how it is built: a name, my_net.py:build or
    package.module:function; for one teacher."""
    distill: str | None = None
    """How: kd (softened shares, Hinton et al. 2015) or dist (correlations between and within classes, Huang
    et al. 2022). Default: kd below 20 classes, dist from there on."""
    temperature: float = 4.0
    """Divides the logits of both networks."""
    teacher_weight: float | None = None
    """kd: the teacher's share of the loss (default 0.9); dist: the weight of the correlations beside the
    labels' loss (default 2)."""
    views: int = VIEWS
    """The teacher's logits are computed once over so many fixed augmented views of each training image and
    kept in the run folder; 0 runs the teacher in every step. For data that is not held in memory, and for
    recipes that mix images, it always runs."""

    def objective(self, data: DataSource, recipe: Recipe) -> tuple[Distillation | None, dict[str, Any]]:
        """The objective, None without a teacher, and what run.json notes of it. Says where the teacher runs
        in every step.
        """
        if not self.teacher:
            self._check_unused()
            return None, {}
        if self.teacher_model is not None and len(self.teacher) > 1:
            raise UserError(
                f"--teacher-model {self.teacher_model} says how one teacher is built, and there are "
                f"{len(self.teacher)}: give weights that globalcnn wrote, whose files say it themselves"
            )
        loaded = [load_with_card(path, model=self.teacher_model) for path in self.teacher]
        reason = why_live(data, recipe)
        if reason and self.views:
            say(f"note: the teacher runs in every step: {reason}, so its logits cannot be kept")
        objective = Distillation(
            [teacher_for(model, card, data) for model, card in loaded],
            loss=loss_for(len(data.classes)) if self.distill is None else self.distill,
            temperature=self.temperature,
            weight=self.teacher_weight,
            views=0 if reason else self.views,
            label_smoothing=recipe.label_smoothing,
        )
        told = {
            "path": [full_path(path) for path in self.teacher],
            "model": [card.label for _, card in loaded],
            "sha256": [checksum(read_weights(path)[0]) for path in self.teacher],
        }
        return objective, {"teacher": told if len(loaded) > 1 else {key: one for key, (one,) in told.items()}}

    def _check_unused(self) -> None:
        given = [
            name
            for name, value, default in (
                ("--teacher-model", self.teacher_model, None),
                ("--distill", self.distill, None),
                ("--temperature", self.temperature, 4.0),
                ("--teacher-weight", self.teacher_weight, None),
                ("--views", self.views, VIEWS),
            )
            if value != default
        ]
        if given:
            raise UserError(
                f"{given[0]} says how to learn from a teacher, and there is none: give --teacher RUN"
            )


def note_left_out(recipe: str, options: Mapping[str, object] | None = None) -> None:
    """Say that the training in a .json file had a teacher, or initial weights, where this one has none.

    options: values of --teacher and --init; None for a command without them.
    """
    for name, what, way_out in (
        ("teacher", "learned from {} too; here the labels alone count", "for the same"),
        ("init", "went on from the weights {}; here all start anew", "to start from some"),
    ):
        found = _named_in(recipe, name)
        if found is not None and not (options or {}).get(name):
            more = "" if options is None else f"; give --{name} {way_out}"
            say(f"note: the training in {recipe} {what.format(found)}{more}")


def _named_in(recipe: str, name: str) -> str | None:
    """The paths of the teachers or initial weights that a card of weights/ or a run.json names."""
    content = read_json(recipe) if recipe.endswith(".json") else None
    told = content.get(name) if isinstance(content, dict) else None
    path = told.get("path") if isinstance(told, dict) else told
    paths = [one for one in as_list(path) if isinstance(one, str)]
    return " and ".join(paths) or None
