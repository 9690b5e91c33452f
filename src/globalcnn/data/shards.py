"""WebDataset shards: which .tar files a split has, and how many images are in each."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtra, UserError, UserTypeError
from .checks import whole_number
from .order import derived_generator

INFO = ("_info.json", "info.json")
NAMES_OF = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
WAY_OUT = (
    "list the shards with their 'shard_lengths' in _info.json beside them, or give shard_images "
    "(--shard-images), one number per split"
)


@dataclass(frozen=True, eq=False)
class Shards:
    """The shards of one split. lengths: images in each; counted: whether they are known one by one, or only
    their sum, which is then spread evenly; label_key: the field of a sample's .json that holds the label; ""
    means its .cls file.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    counted: bool = True
    label_key: str = ""

    @property
    def images(self) -> int:
        return sum(self.lengths)

    def chosen(self, positions: Sequence[int]) -> Shards:
        """The shards at these positions."""
        return Shards(
            tuple(self.paths[i] for i in positions),
            tuple(self.lengths[i] for i in positions),
            self.counted,
            self.label_key,
        )


@dataclass(frozen=True, eq=False)
class ShardFolder:
    """Splits and classes, before any shard was opened."""

    splits: dict[str, Shards]
    classes: tuple[str, ...]


def list_shards(
    where: str, *, shard_images: Sequence[int] | None = None, num_classes: int | None = None
) -> ShardFolder:
    """Find the shards of each split.

    where: a folder with timm's _info.json, or a pattern of .tar files with * or {000..009}, whose names say
        which split they are of (train; val, valid or validation; test).  A folder without _info.json means
        all its .tar files.
    shard_images: images in each split, in the order train, val, test, of those that there are; needed where
        no _info.json says it.
    num_classes: needed where no "classes" in _info.json lists their names; they are then called 0, 1, ...

    Raises `UserError` saying what is missing.
    """
    _check_package()
    root = Path(where) if os.path.isdir(where) else Path(where).parent
    info = _read_info(root)
    known = _splits_of(info, root)
    if os.path.isdir(where) and known:
        paths = {split: shards.paths for split, shards in known.items()}
        _check_there([path for found in paths.values() for path in found])
    else:
        pattern = os.path.join(glob.escape(where), "*.tar") if os.path.isdir(where) else where
        paths = _by_name(_expanded(pattern))
    if "test" not in paths:
        if "val" not in paths:
            raise UserError(
                f"{where!r} has no shards of test: it needs some of train, and of val or test or both"
            )
        paths = {"test" if split == "val" else split: found for split, found in paths.items()}
        known = {"test" if split == "val" else split: shards for split, shards in known.items()}
    return ShardFolder(_with_lengths(where, paths, known, shard_images), _classes(where, info, num_classes))


def held_out_shards(train: Shards, fraction: float, *, seed: int) -> tuple[Shards, Shards]:
    """Draw whole shards, about `fraction` of them and at least one: (kept, held out); none for fraction 0."""
    count = len(train.paths)
    held = max(1, round(fraction * count)) if fraction else 0
    if held and count < 2:
        raise UserError(
            f"validation={fraction} holds out whole shards, and there is one training shard: make more, give "
            "shards of a split of their own for validation, or take validation=0"
        )
    order = torch.randperm(count, generator=derived_generator(seed, "validation")).tolist()
    held = min(held, count - 1)
    return train.chosen(sorted(order[held:])), train.chosen(sorted(order[:held]))


def _check_package() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise MissingExtra("webdataset", feature="data in shards (wds:)", extra="webdataset") from error


def _read_info(root: Path) -> dict[str, Any]:
    for name in INFO:
        path = root / name
        if path.is_file():
            try:
                info = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{str(path)!r} cannot be read as JSON: {error}") from error
            if not isinstance(info, dict):
                raise UserError(f"{str(path)!r} must hold a JSON object with 'splits'")
            return info
    return {}


def _splits_of(info: dict[str, Any], root: Path) -> dict[str, Shards]:
    found: dict[str, Shards] = {}
    for split, names in NAMES_OF.items():
        for name in names:
            entry = info.get("splits", {}).get(name)
            if entry is None:
                continue
            try:
                files = [str(file) for file in entry["filenames"]]
                lengths = tuple(int(n) for n in entry["shard_lengths"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"the split {name!r} in {str(root / INFO[0])!r} needs 'filenames' and 'shard_lengths', a "
                    f"list each: {error!r}"
                ) from error
            if len(lengths) != len(files) or not files or min(lengths) < 1:
                raise UserError(
                    f"the split {name!r} in {str(root / INFO[0])!r} has {len(files)} filenames and "
                    f"{len(lengths)} shard_lengths: it needs equally many, at least one, and no empty shards"
                )
            paths = tuple(os.path.abspath(root / file) for file in files)
            found[split] = Shards(paths, lengths, label_key=str(entry.get("alt_label") or ""))
    return found


def _expanded(pattern: str) -> list[str]:
    import braceexpand

    try:
        names = list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError as error:  # type: ignore[attr-defined]
        raise UserError(f"the braces in {pattern!r} do not match: {error}") from error
    found: list[str] = []
    for name in names:
        if glob.has_magic(name):
            found += sorted(glob.glob(name))
        else:
            found.append(name)
    if not found:
        raise UserError(
            f"no shard fits {pattern!r}: give a folder with .tar files, or a pattern such as "
            "my/data/train-{000..009}.tar"
        )
    _check_there(found)
    return [os.path.abspath(name) for name in dict.fromkeys(found)]


def _by_name(paths: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        words = set(re.split(r"[^a-z]+", os.path.basename(path).lower()))
        splits = [split for split, names in NAMES_OF.items() if words & set(names)]
        if len(splits) != 1:
            raise UserError(
                f"the name of the shard {path!r} must say its split, one of train, val (or validation) and "
                "test, as in train-000.tar"
            )
        found.setdefault(splits[0], []).append(path)
    return {split: tuple(found[split]) for split in NAMES_OF if split in found}


def _check_there(paths: list[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"there is no shard or folder {missing[0]!r}{more}")
    for path in paths:
        if not os.access(path, os.R_OK):
            raise UserError(f"the shard {path!r} cannot be read: look at its permissions")


def _with_lengths(
    where: str,
    paths: dict[str, tuple[str, ...]],
    known: dict[str, Shards],
    shard_images: Sequence[int] | None,
) -> dict[str, Shards]:
    """The splits with their sizes: those of _info.json, or the given ones."""
    if shard_images is None:
        lengths = {path: n for s in known.values() for path, n in zip(s.paths, s.lengths, strict=True)}
        unknown = [path for found in paths.values() for path in found if path not in lengths]
        if unknown:
            raise UserError(f"how many images the shard {unknown[0]!r} holds is not known: {WAY_OUT}")
        keys = {path: s.label_key for s in known.values() for path in s.paths}
        return {
            split: Shards(found, tuple(lengths[p] for p in found), label_key=keys[found[0]])
            for split, found in paths.items()
        }
    if isinstance(shard_images, (str, bytes)) or not isinstance(shard_images, Sequence):
        raise UserTypeError(f"shard_images={shard_images!r} must be numbers, one per split")
    given = [whole_number("shard_images", n, least=1) for n in shard_images]
    if len(given) != len(paths):
        raise UserError(
            f"shard_images={tuple(given)} must be one number for each of the splits {', '.join(paths)} of "
            f"{where!r}, in this order"
        )
    return {
        split: Shards(found, _spread(images, len(found), split), counted=False)
        for images, (split, found) in zip(given, paths.items(), strict=True)
    }


def _spread(images: int, shards: int, split: str) -> tuple[int, ...]:
    if images < shards:
        raise UserError(
            f"shard_images={images} of {split} is less than one image for each of {shards} shards"
        )
    each, rest = divmod(images, shards)
    return tuple(each + (i < rest) for i in range(shards))


def _classes(where: str, info: dict[str, Any], num_classes: int | None) -> tuple[str, ...]:
    names = info.get("classes")
    if names is not None:
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(n, str) for n in names):
            raise UserError(
                f"'classes' in the _info.json of {where!r} must list the names of at least 2 classes"
            )
        return tuple(names)
    if num_classes is None:
        raise UserError(
            f"how many classes the shards in {where!r} have is not known: give num_classes (--num-classes), "
            "or list their names as 'classes' in _info.json"
        )
    return tuple(str(label) for label in range(whole_number("num_classes", num_classes, least=2)))
