"""Options that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..data import DataSource, load_data
from ..errors import UserError
from ..models import Source, parse_source
from ..reproduce import RECIPES, find_recipe
from ..train import Recipe, suited_to
from .networks import ImageSize


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: str = "digits"
    """digits (5,000 real MNIST digits, built in), mnist, cifar10, cifar100, reach or reach-curve (generated
    images), npz:PATH (keys as in Keras or MedMNIST), folder:PATH (one folder per class), or wds:PATH
    (WebDataset shards: a folder with _info.json, or a pattern of .tar files)."""
    data_dir: Path | None = None
    """Folder that holds mnist, cifar10 or cifar100."""
    download: tyro.conf.FlagCreatePairsOff[bool] = False
    """Download mnist, cifar10 or cifar100 into --data-dir if they are not there."""
    image_size: ImageSize = None
    """Resize the images to this side, or to this height and width, in pixels. Default: as they are; 224 for
    folders of larger images and for shards."""
    shard_images: tuple[int, ...] | None = None
    """How many images the shards of each split hold, in the order train, val, test of those there are, for
    wds: without _info.json."""

    def load(self, *, validation: float, seed: int = 0, num_classes: int | None = None) -> DataSource:
        """The source of images. num_classes: of shards that do not say it."""
        return load_data(
            self.data,
            data_dir=self.data_dir,
            download=self.download,
            validation=validation,
            seed=seed,
            image_size=self.image_size,
            shard_images=self.shard_images,
            num_classes=num_classes,
        )

    def describe(self) -> dict[str, Any]:
        """What run.json keeps, so that `globalcnn eval` finds the data from any folder."""
        kind, _, path = self.data.partition(":")
        return {
            "data": f"{kind}:{os.path.abspath(os.path.expanduser(path))}" if path else kind,
            "data_dir": None if self.data_dir is None else os.path.abspath(self.data_dir),
            "shard_images": self.shard_images,
        }


@dataclass(frozen=True)
class DataOfRun(DataOptions):
    """Which images; by default those of the training."""

    data: str | None = None  # type: ignore[assignment]
    """As in `globalcnn train`. Default: the data of the training."""
    image_size: ImageSize = None
    """Resize the images to this side, or to this height and width. Default: as in training."""

    def of(self, run: Mapping[str, Any] | None, image_size: tuple[int, int]) -> DataOptions:
        """The options to load by. run: what run.json says, if there is one; image_size: of the training."""
        told: Mapping[str, Any] = {}
        if self.data is None:
            kept = None if run is None else run.get("data_options")
            if not isinstance(kept, Mapping) or not isinstance(kept.get("data"), str):
                raise UserError("there is no run.json that says which data it was trained on: give --data")
            told = kept
        shards = self.shard_images or told.get("shard_images")
        return DataOptions(
            data=self.data or told["data"],
            data_dir=self.data_dir or (Path(told["data_dir"]) if told.get("data_dir") else None),
            download=self.download,
            image_size=image_size if self.image_size is None else self.image_size,
            shard_images=None if shards is None else tuple(shards),
        )


def network_source(text: str, settings: Sequence[str] = ()) -> Source:
    """What a word on the command line means as a network, with settings KEY=VALUE; nothing is built yet."""
    return parse_source(text, settings=parsed_settings(settings))


def parsed_settings(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as arguments: numbers, true, false, null, lists as in JSON; anything else is text.

    >>> parsed_settings(["drop_rate=0.1", "norm=batch", "widths=[8, 16]"])
    {'drop_rate': 0.1, 'norm': 'batch', 'widths': [8, 16]}
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.replace("-", "_").isidentifier():
            raise UserError(f"--set {word!r} must be KEY=VALUE, such as --set drop_rate=0.1")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[key.replace("-", "_")] = value
    return settings


def _recipe_options() -> type:
    """A dataclass with every field of `Recipe`, optional: None leaves the recipe's own value."""
    options: list[tuple[str, Any, Any]] = []
    hints, defaults = {f.name: f for f in fields(Recipe)}, Recipe()
    types: dict[str, Any] = {
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
        "tuple[int, ...]": tuple[int, ...],
        "tuple[float, ...]": tuple[float, ...],
    }
    for name, f in hints.items():
        if name == "name":
            continue
        kind = types[str(f.type).removesuffix(" | None")]
        default = getattr(defaults, name)
        modern = "none" if default in ("", ()) else default
        about = f"{f.metadata['help']}; modern: {modern}"
        options.append((name, Annotated[kind | None, tyro.conf.arg(help=about)], field(default=None)))
    made = make_dataclass("RecipeOptions", options, frozen=True)
    made.__doc__ = "Change single fields of the recipe."
    return made


RecipeOptions: Any = _recipe_options()

RecipeName = Annotated[
    str,
    tyro.conf.arg(
        help="A recipe: modern (short); published (what the model was published with); a .json file, such as "
        "the run.json of a run or a card in weights/; or "
        + ", ".join(name for name in RECIPES if name != "modern")
    ),
]


def resolve_recipe(name: str, model: str, options: Any, data_name: str) -> Recipe:
    """The recipe called `name`, as it suits the data, with the fields that were given on the command line."""
    return suited_to(find_recipe(name, model), data_name).replace(**given_fields(options))


def given_fields(options: Any) -> dict[str, Any]:
    """The fields of a recipe that were given on the command line."""
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    return {name: value for name, value in given.items() if value is not None}


def new_folder(path: Path, *, overwrite: bool, ours: Sequence[str]) -> Path:
    """An output folder that is new or empty, or whose former outputs `ours` may be replaced."""
    if path.exists() and not path.is_dir():
        raise UserError(f"the output folder {str(path)!r} is a file; choose another --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"the output folder {str(path)!r} is not empty: choose another --out, or give --overwrite"
        )
    path.mkdir(parents=True, exist_ok=True)
    for name in ours:
        (path / name).unlink(missing_ok=True)
    return path
