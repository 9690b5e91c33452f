"""By what a row of weights/ is trained: the recipe, the teacher and the initial weights that its card names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from globalcnn.cli.teaching import TeacherOptions
from globalcnn.errors import UserError
from globalcnn.files import read_json
from globalcnn.models.shipped import full_path
from globalcnn.models.weights import checksum, read_weights
from globalcnn.train import Recipe
from globalcnn.train.initial import start_from
from globalcnn.train.recipe import completed


@dataclass(frozen=True)
class How:
    """By what a training was, or is to be, done. Equal ones differ by the seed at most."""

    recipe: Recipe
    teacher: Mapping[str, Any] | None = None
    init: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> How:
        """That of a training's results, or of a card; fields that the version of then did not know have their
        defaults."""
        return cls(Recipe.from_dict(completed(told["recipe"])), told.get("teacher"), told.get("init"))

    def before(self) -> Iterator[How]:
        """The trainings that the initial weights come from, the latest one first."""
        if self.init is not None:
            earlier = How.of(self.init)
            yield earlier
            yield from earlier.before()

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of each training, the first one first.

        >>> How(Recipe(epochs=60), init={"recipe": {"epochs": 70}}).epochs
        (70, 60)
        """
        return tuple(reversed([self.recipe.epochs, *(earlier.recipe.epochs for earlier in self.before())]))

    @property
    def alike(self) -> str:
        """Equal for networks that were trained alike: compiled or not (the same within rounding), and their initial
        weights trained alike, where there are any."""
        each = [self, *self.before()]
        return repr([(how.recipe.replace(compile=False), how.teacher) for how in each])


def teaching(card: Mapping[str, Any]) -> TeacherOptions:
    """From which network a row learns, and how."""
    told = dict(card.get("teacher", {}))
    path = told.pop("path", None)
    unknown = sorted(told.keys() - {"distill", "temperature", "teacher_weight", "views"})
    if unknown or (told and path is None):
        raise UserError(
            f"teacher of the card: {', '.join(unknown) or 'path is missing'}; it has path and any of "
            "distill, temperature, teacher_weight and views"
        )
    return TeacherOptions(teacher=None if path is None else Path(path), **told)


def begin(model: nn.Module, card: Mapping[str, Any], weights: Path, results: Path) -> dict[str, Any]:
    """Give a network the weights of the row that its card names in `init`, if it does; what run.json notes of it.

    weights: the folder of the rows; results: that of their results, which say how those weights were trained.
    """
    if "init" not in card:
        return {}
    named = card["init"]
    row = named.get("path")
    file = weights / f"{row}.safetensors"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in weights.glob("*.safetensors")))
        raise UserError(f"init of the card: path={row!r} is no row with weights; there are {known}")
    for line in start_from(model, file):
        raise UserError(f"init of the card: {row} is of another network or other data: {line}")
    seed = named.get("seed", read_json(weights / f"{row}.json")["shipped_seed"])
    runs = {run["seed"]: run for run in read_json(results / f"{row}.json")["runs"]}
    if seed not in runs:
        raise UserError(f"init of the card: there is no result of {row}, seed {seed}; there are {list(runs)}")
    kept = ("recipe", "teacher", "init", "test_accuracy")
    how = {key: runs[seed][key] for key in kept if key in runs[seed]}
    told = {"path": row, "seed": seed, "sha256": checksum(read_weights(file)[0]), **how}
    _refuse_others("init", told, named)
    return {"init": told}


def used(told: Mapping[str, Any], card: Mapping[str, Any], row: str) -> How:
    """By what a training was done, from its summary; a `UserError` where its card says otherwise."""
    teacher, init = told.get("teacher"), told.get("init")
    for key, found, words in (("teacher", teacher, "a teacher"), ("init", init, "initial weights")):
        if (found is None) == (key not in card):
            continue
        other = (
            f"without the {key} of its card" if found is None else f"with {words}, and its card names none"
        )
        raise UserError(f"{row}: it was trained {other}")
    if teacher is not None:
        teacher = _teacher_used(told, card["teacher"])
    if init is not None:
        _refuse_others("init", init, card["init"])
    how = How.of({"recipe": told["recipe"], "teacher": teacher, "init": init})
    if how.recipe != How.of(card).recipe:
        raise UserError(f"{row}: it was trained by another recipe than the card's")
    return how


def _teacher_used(told: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of `teacher`, as a training used it."""
    objective, path, named = told["objective"], told["teacher"]["path"], card["path"]
    found = {
        "path": named if path == full_path(Path(named)) else path,
        "distill": objective["loss"],
        "temperature": objective["temperature"],
        "teacher_weight": objective["weight"],
        "views": objective["views"],
    }
    _refuse_others("teacher", found, card)
    return found


def _refuse_others(name: str, found: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    for key, value in card.items():
        if found.get(key) != value:
            raise UserError(
                f"a run had another {name} than its card: {key}={found.get(key)!r}, not {value!r}"
            )
