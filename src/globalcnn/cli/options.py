"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..data import DataSource, load_data
from ..errors import UserError
from ..reproduce import RECIPES, find_recipe
from ..train import Recipe, suited_to


@dataclass(frozen=True)
class DataOptions:
    """Which images."""

    data: str = "digits"
    """digits (5,000 real MNIST digits, built in), mnist, cifar10, cifar100, npz:PATH (keys as in
    Keras or MedMNIST), folder:PATH (one folder per class), or wds:PATH (WebDataset shards: a folder
    with _info.json, or a pattern of .tar files)."""
    data_dir: Path | None = None
    """Folder that holds mnist, cifar10 or cifar100."""
    download: tyro.conf.FlagCreatePairsOff[bool] = False
    """Download mnist, cifar10 or cifar100 into --data-dir if they are not there."""
    image_size: int | None = None
    """Resize the images to this side, in pixels. Default: as they are; 224 for folders of larger images
    and for shards."""
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


def _recipe_options() -> type:
    """A dataclass with every field of `Recipe`, optional: None leaves the recipe's own value."""
    options: list[tuple[str, Any, Any]] = []
    hints = {f.name: f for f in fields(Recipe)}
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
        modern = "none" if f.default in ("", ()) else f.default
        about = f"{f.metadata['help']}; modern: {modern}"
        options.append((name, Annotated[kind | None, tyro.conf.arg(help=about)], field(default=None)))
    made = make_dataclass("RecipeOptions", options, frozen=True)
    made.__doc__ = "Change single fields of the recipe."
    return made


RecipeOptions: Any = _recipe_options()

RecipeName = Annotated[
    str,
    tyro.conf.arg(
        help="Name of a recipe: modern (short); published (what the model was published with); or "
        + ", ".join(name for name in RECIPES if name != "modern")
    ),
]


def resolve_recipe(name: str, model: str, options: Any, data_name: str) -> Recipe:
    """The recipe called `name`, as it suits the data, with the fields that were given on the command line."""
    recipe = suited_to(find_recipe(name, model), data_name)
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    return recipe.replace(**{k: v for k, v in given.items() if v is not None})


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
