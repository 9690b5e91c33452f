"""By what a row of weights/ is trained: the recipe, the teacher and the initial weights that its card names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from globalcnn.cli.teaching import TeacherOptions
from globalcnn.data import DataSource
from globalcnn.errors import UserError
from globalcnn.files import as_list, read_json
from globalcnn.models.shipped import full_path
from globalcnn.models.weights import checksum, read_weights
from globalcnn.train import Objective, Recipe
from globalcnn.train.recipe import completed


@dataclass(frozen=True)
class How:
    """By what a training was, or is to be, done. Equal ones differ by seeds at most."""

    recipe: Recipe
    teacher: Mapping[str, Any] | None = None
    earlier: How | None = None
    """The training that the initial weights come from."""
    init: Mapping[str, Any] | None = field(default=None, compare=False)
    """What is told of those weights."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> How:
        """That of a training's results, or of a card; fields that the version of then did not know have their
        defaults."""
        init = told.get("init")
        earlier = How.of(init) if init is not None and "recipe" in init else None
        return cls(Recipe.from_dict(completed(told["recipe"])), told.get("teacher"), earlier, init)

    @property
    def trainings(self) -> tuple[How, ...]:
        """One after another, this one last."""
        return (*(self.earlier.trainings if self.earlier is not None else ()), self)

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of each training.

        >>> How.of({"recipe": {"epochs": 60}, "init": {"recipe": {"epochs": 70}}}).epochs
        (70, 60)
        """
        return tuple(how.recipe.epochs for how in self.trainings)

    @property
    def teachers(self) -> tuple[str, ...]:
        """From which networks the trainings learned."""
        return tuple(dict.fromkeys(path for how in self.trainings for path in how.own_teachers))

    @property
    def own_teachers(self) -> tuple[str, ...]:
        """From which networks this training learned, those before it aside.

        >>> How.of({"recipe": {}, "teacher": {"path": ["a", "b"]}, "init": {"path": "b"}}).own_teachers
        ('a', 'its initial weights')
        """
        itself = (self.init or {}).get("path")
        paths = as_list(self.teacher["path"]) if self.teacher else []
        return tuple("its initial weights" if path == itself else path for path in paths)

    @property
    def alike(self) -> str:
        """Equal for networks that were trained alike: compiled or not, which is the same within rounding."""
        return repr([(how.recipe.replace(compile=False), how.teacher) for how in self.trainings])


def enumerated(names: Sequence[str]) -> str:
    """In one phrase.

    >>> enumerated(("a", "b", "c"))
    'a, b and c'
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def teaching(card: Mapping[str, Any], begun: Path | None = None) -> TeacherOptions:
    """From which networks a row learns, and how; a `UserError` where their weights are not those that the card
    means.

    begun: the initial weights, also of a teacher that has the `path` and `sha256` of the card's `init`.
    """
    told, init = dict(card.get("teacher", {})), card.get("init", {})
    paths, wanted = as_list(told.pop("path", [])), told.pop("sha256", None)
    unknown = sorted(told.keys() - {"distill", "temperature", "teacher_weight", "views"})
    if unknown or (not paths and (told or wanted)):
        raise UserError(
            f"teacher of the card: {', '.join(unknown) or 'path is missing'}; it has path and any of "
            "sha256, distill, temperature, teacher_weight and views"
        )
    digests = [None] * len(paths) if wanted is None else as_list(wanted)
    if len(digests) != len(paths):
        raise UserError(f"teacher of the card: {len(paths)} in path, and {len(digests)} in sha256")
    files = []
    for path, digest in zip(paths, digests, strict=True):
        file = Path(path)
        if begun is not None and digest is not None:
            file = begun if (path, digest) == (init.get("path"), init.get("sha256")) else file
        found = None if digest is None else checksum(read_weights(file)[0])
        if found != digest:
            raise UserError(
                f"teacher of the card: sha256 of the weights of {path} is {found}, not {digest!r}: they have "
                "become others. Take the checkout that has those, or remove sha256 to learn from the new ones"
            )
        files.append(file)
    return TeacherOptions(teacher=tuple(files), **told)


def objective_of(
    card: Mapping[str, Any], data: DataSource, recipe: Recipe, begun: Path | None
) -> tuple[Objective | None, dict[str, Any]]:
    """The objective of a row (None: the labels alone), and what run.json notes of its teacher: of initial weights
    that are a teacher too the name that the card gives them, wherever their file is."""
    objective, told = teaching(card, begun).objective(data, recipe)
    if told and begun is not None:
        path = told["teacher"]["path"]
        named = [card["init"]["path"] if one == full_path(begun) else one for one in as_list(path)]
        told["teacher"]["path"] = named if isinstance(path, list) else named[0]
    return objective, told


def initial_weights(
    named: Mapping[str, Any], weights: Path, results: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The file that `init` of a card means, and all that is told of it; None where that is to be trained again.

    It is, by what `init` tells, where the weights of its row have become others since.

    weights: the folder of the rows; results: that of their results, which say how the weights were trained.
    """
    row = named.get("path")
    file = weights / f"{row}.safetensors"
    found = checksum(read_weights(file)[0]) if file.is_file() else None
    if found is not None and named.get("sha256", found) == found:
        return file, {
            **(named if "recipe" in named else _told_of(row, named, weights, results)),
            "sha256": found,
        }
    if "recipe" in named:
        return None
    if found is not None:
        raise UserError(
            f"init of the card: sha256 of the weights of {row} is {found}, not {named['sha256']!r}"
        )
    known = ", ".join(sorted(path.stem for path in weights.glob("*.safetensors")))
    raise UserError(f"init of the card: path={row!r} is no row with weights; there are {known}")


def _told_of(row: Any, named: Mapping[str, Any], weights: Path, results: Path) -> dict[str, Any]:
    seed = named.get("seed", read_json(weights / f"{row}.json")["shipped_seed"])
    runs = {run["seed"]: run for run in read_json(results / f"{row}.json")["runs"]}
    if seed not in runs:
        raise UserError(f"init of the card: there is no result of {row}, seed {seed}; there are {list(runs)}")
    kept = {
        key: runs[seed][key] for key in ("recipe", "teacher", "init", "test_accuracy") if key in runs[seed]
    }
    return {"path": row, "seed": seed, **kept}


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
    how, wanted = How.of({"recipe": told["recipe"], "teacher": teacher, "init": init}), How.of(card)
    if init is not None:
        _refuse_others(
            "init", init, {key: card["init"][key] for key in ("path", "seed") if key in card["init"]}
        )
        if wanted.earlier not in (None, how.earlier):
            raise UserError(
                f"{row}: its initial weights were trained by another recipe or teacher than the card's"
            )
    if how.recipe != wanted.recipe:
        raise UserError(f"{row}: it was trained by another recipe than the card's")
    return how


def _teacher_used(told: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of `teacher`, as a training used it."""
    objective, path, named = told["objective"], told["teacher"]["path"], card["path"]
    found = {
        "path": named if as_list(path) == [full_path(one) for one in as_list(named)] else path,
        "sha256": told["teacher"].get("sha256"),  # that of runs by earlier versions is not known
        "distill": objective["loss"],
        "temperature": objective["temperature"],
        "teacher_weight": objective["weight"],
        "views": objective["views"],
    }
    _refuse_others("teacher", found, card)
    return {key: value for key, value in found.items() if value is not None or key != "sha256"}


def _refuse_others(name: str, found: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    for key, value in card.items():
        if found.get(key) != value:
            raise UserError(
                f"a run had another {name} than its card: {key}={found.get(key)!r}, not {value!r}"
            )
