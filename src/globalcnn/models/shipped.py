"""Trained weights that come with the library: `<network>-<data>.safetensors` in one folder, and in
the `.json` of that name what they were trained by and measured at.

In a wheel they are in the package; in a checkout, or an editable install of one, in weights/ at its root. No
file is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "weights", _PACKAGE.parents[1] / "weights")


@cache
def weights_folder() -> Path | None:
    """The folder of the weights; None where the library came without them."""
    return next((place for place in _PLACES if any(place.glob("*-*.safetensors"))), None)


@cache
def _found() -> Mapping[str, Mapping[str, Path]]:
    folder, found = weights_folder(), dict[str, dict[str, Path]]()
    for path in sorted(folder.glob("*-*.safetensors")) if folder is not None else ():
        name, _, data = path.stem.rpartition("-")
        found.setdefault(name, {})[data] = path
    return found


def shipped_weights(name: str) -> Mapping[str, Path]:
    """The files of trained weights of the network called `name`, by the data that they were trained on.

    >>> list(shipped_weights("resnet_mnist"))
    ['mnist']
    """
    return _found().get(name, {})


def shipped_names() -> tuple[str, ...]:
    """Each file of trained weights as "network-data"."""
    return tuple(f"{name}-{data}" for name, found in _found().items() for data in found)


def shipped_file(row: str) -> Path | None:
    """The weights called `row` ("network-data"); None where the library has none of that name."""
    name, _, data = row.rpartition("-")
    return shipped_weights(name).get(data)


def full_path(path: str | Path) -> str:
    """The absolute path of a file or folder; of weights that come with the library their name as it is."""
    named = not os.path.exists(path) and shipped_file(str(path)) is not None
    return str(path) if named else os.path.abspath(path)


def shipped_training(path: Path) -> dict[str, Any] | None:
    """How weights that come with the library were trained, in the entries of a run.json: recipe, seed, data.

    None for other files.
    """
    if path.resolve().parent != weights_folder() or shipped_file(path.stem) is None:
        return None
    card = shipped_card(path.stem)
    return {
        "recipe": card["recipe"],
        "seed": card["shipped_seed"],
        "data_options": {"data": card["data"]},
    }


def shipped_card(row: str, folder: Path | None = None) -> dict[str, Any]:
    """The claim of a row ("network-data") and the recipe behind it: `test_accuracy` by seed, `shipped_seed`,
    `network`, `data`, `recipe` (fields that differ from the modern one), hours, hardware, size.
    """
    place = folder or weights_folder()
    if place is None:
        raise UserError("this installation came without trained weights")
    card: dict[str, Any] = read_json(place / f"{row}.json")
    return card


def shipped_path(name: str, data: str) -> Path | None:
    """The weights of `name` trained on `data`; None where `data` is something else than a name of data.

    Raises `UserError` where it looks like one, and there are no such weights.
    """
    found = shipped_weights(name)
    if data in found:
        return found[data]
    if Path(data).exists() or not data.isidentifier():
        return None
    there = f"there are those of {', '.join(found)}" if found else "there are none of this network"
    raise UserError(
        f"there are no weights of {name!r} trained on {data!r}: {there}; name a file or a run folder "
        f"(pretrained=PATH), or train it: globalcnn train {name}"
    )
