"""Folders of images with one folder per class: recognising the layout and listing the files of each split."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from ..errors import UserError
from .pictures import SUFFIXES
from .roles import alike, names_role, role_of
from .split import every_fifth
from .walk import Found, holds_images, image_folders, images_below, is_image_name, subfolders

EXPECTED = (
    "it must have a folder of images per class, or train/ and test/ (or val/, or both) with a folder of "
    "images per class in each"
)


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of one split with their labels, sorted by class, then by name."""

    paths: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def chosen(self, positions: torch.Tensor) -> Listing:
        """The images at these positions."""
        where = positions.tolist()
        return Listing(tuple(self.paths[i] for i in where), tuple(self.labels[i] for i in where))


@dataclass(frozen=True, eq=False)
class Folder:
    """The splits of a folder, before any image was opened.

    splits: always "test"; "train" unless the folder is for evaluation only; "val" if it has its own;
    notes: how the folder was read and what was skipped, as sentences for the user.
    """

    root: str
    splits: Mapping[str, Listing]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, split after split."""
        return tuple(path for listing in self.splits.values() for path in listing.paths)


def list_folder(root: Path) -> Folder:
    """Find classes, images and splits below `root`.

    root has either one folder per class, and every fifth image of each class becomes a test image; or split
    folders with one folder per class in each: train, and val or test or both, or test alone for evaluation.
    The usual names of splits are recognised in any case (`roles.role_of`).  With train and val only, val is
    used as the test split.

    A folder with such a name is a split only if it has folders in it; if it has images and no folders, it is
    a class like its neighbours.  Ambiguous layouts are refused.  Class folders are searched to any depth.
    Hidden files and folders, those of operating systems, and files that are not images are skipped.

    Raises `UserError` saying what is missing or ambiguous.
    """
    if not os.path.exists(root):
        raise UserError(f"there is no folder {str(root)!r}: give one with a folder of images per class")
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is a file: give a folder with a folder of images per class")
    inside = subfolders(root)
    if not inside:
        raise UserError(f"{str(root)!r} has no folders in it: {EXPECTED}")
    parts = [name for name in inside if role_of(name) and subfolders(root / name)]
    if parts:
        return _in_parts(root, parts, [name for name in inside if name not in parts])
    if all(role_of(name) for name in inside):
        raise UserError(
            f"{str(root / inside[0])!r} has no folders in it: it must have a folder of images per class"
        )
    return _flat(root, inside)


def _in_parts(root: Path, parts: list[str], others: list[str]) -> Folder:
    """A folder that has split folders such as train/ and test/; `others` are its remaining folders."""
    by_role: dict[str, str] = {}
    for name in parts:
        role = role_of(name)
        assert role is not None
        if role in by_role:
            raise UserError(
                f"{str(root)!r} has {by_role[role]!r} and {name!r}, which both mean {role}: keep one of "
                "them, or move the other elsewhere"
            )
        by_role[role] = name
    with_images = [name for name in others if holds_images(root / name)]
    for name in with_images:
        if role_of(name):
            raise UserError(
                f"{str(root / name)!r} has no folders in it: it must have a folder of images per class"
            )
    if with_images:
        raise UserError(
            f"{str(root)!r} has split folders ({', '.join(parts)}) and next to them {with_images[0]!r} "
            "with images, whose role is not known: name the splits train, val and test, and move others "
            "elsewhere"
        )
    if list(by_role) == ["train"]:
        raise UserError(
            f"{str(root)!r} has {parts[0]}/ but neither val/ nor test/: add one, or give "
            f"{str(root / parts[0])!r}, which is then split"
        )
    notes = [f"skipped folders without images: {', '.join(others)}"] if others else []
    return _with_parts(root, by_role, notes)


def _with_parts(root: Path, by_role: dict[str, str], notes: list[str]) -> Folder:
    roles = [role for role in ("train", "val", "test") if role in by_role]
    first = by_role[roles[0]]
    classes = subfolders(root / first)
    _check_classes(root / first, classes, least=2 if "train" in by_role else 1)
    for role in roles[1:]:
        _check_same_classes(root, first, by_role[role], classes)
    found = Found()
    listings: dict[str, Listing] = {role: _listing(root / by_role[role], classes, found) for role in roles}
    if "test" not in listings:
        listings["test"] = listings.pop("val")
        notes.append(f"{by_role['val']}/ is used as the test split, as there is no other")
    if "train" not in listings:
        notes.append("no training images: for evaluation only")
    places = {os.path.realpath(root / name): name for name in by_role.values()}
    if len(places) < len(by_role):
        notes.append("two splits are links to one folder: test images are also training images")
    return Folder(str(root), listings, tuple(classes), (*notes, *found.notes()))


def _flat(root: Path, classes: list[str]) -> Folder:
    _check_classes(root, classes)
    found = Found()
    whole = _listing(root, classes, found)
    labels = torch.tensor(whole.labels)
    for label, count in enumerate(torch.bincount(labels).tolist()):
        if count < 2:
            raise UserError(
                f"{str(root / classes[label])!r} has a single image: a folder without train/ and val/ is "
                "split into training and test images and needs at least 2 of each class"
            )
    train, test = every_fifth(labels)
    notes = ["no train/ and test/ folders: every fifth image of each class is a test image"]
    named = [name for name in classes if role_of(name)]
    if named:
        verb = "is a class" if len(named) == 1 else "are classes"
        notes.append(f"{' and '.join(map(repr, named))} {verb} like the others, with images and no folders")
    splits = {"train": whole.chosen(train), "test": whole.chosen(test)}
    return Folder(str(root), splits, tuple(classes), (*notes, *found.notes()))


def _check_classes(root: Path, classes: list[str], *, least: int = 2) -> None:
    """Raise `UserError` unless the folders `classes` in `root` can be classes, `least` or more."""
    if len(classes) < least:
        inside = subfolders(root / classes[0])
        hint = f"; give {str(root / classes[0])!r} if its folders are meant" if len(inside) > 1 else ""
        raise UserError(
            f"{str(root)!r} has one class folder, {classes[0]!r}: classification needs at least 2{hint}"
        )
    for one, other in alike(classes):
        raise UserError(
            f"{str(root)!r} has the class folders {one!r} and {other!r}, which differ only by "
            "case or accents: put their images together, or rename one"
        )
    for name in classes:
        if not name.isprintable() or not name.strip():
            raise UserError(
                f"the class folder {name!r} in {str(root)!r} has a name that cannot be printed: rename it"
            )
    _check_places(root, classes)
    _check_no_parts(root, classes)


def _check_places(root: Path, classes: list[str]) -> None:
    """Raise `UserError` for links through which an image would belong to several classes."""
    here = os.path.join(os.path.realpath(root), "")
    places = {name: os.path.join(os.path.realpath(root / name), "") for name in classes}
    for name, place in places.items():
        if here.startswith(place):
            raise UserError(
                f"the class folder {str(root / name)!r} is a link to a folder that holds it: remove the link"
            )
    # in order of places the folders inside a folder come right after it
    ordered = sorted(places, key=lambda name: (places[name], name))
    for one, other in pairwise(ordered):
        if places[other].startswith(places[one]):
            raise UserError(
                f"the class folders {one!r} and {other!r} in {str(root)!r} share images by a link: an image "
                "has one class; remove the link"
            )


def _check_no_parts(root: Path, classes: list[str]) -> None:
    """Raise `UserError` if the class folders look like split folders under unknown names.

    They do if they hold folders and no images, and either have a word such as train in their names or hold
    folders of the same names.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if holds_images(root / name, deep=False):
            continue
        if names_role(name):
            raise UserError(
                f"{str(root / name)!r} holds folders and no images and is named like a split: call "
                "the splits train, val and test, with one folder of images per class in each"
            )
        innermost = image_folders(root / name)
        shared = sorted(innermost & seen.keys())
        if len(shared) > 1 and seen[shared[0]] == seen[shared[1]]:
            raise UserError(
                f"{str(root / seen[shared[0]])!r} and {str(root / name)!r} hold the same folders "
                f"({', '.join(map(repr, shared[:5]))}), so it is not clear which are the classes: "
                "name the splits train, val and test, with one folder per class in each"
            )
        seen |= dict.fromkeys(innermost, name)


def _check_same_classes(root: Path, first: str, second: str, classes: list[str]) -> None:
    others = subfolders(root / second)
    if others == classes:
        return
    only, lacking = sorted(set(others) - set(classes)), sorted(set(classes) - set(others))
    differences = [
        f"{verb} {', '.join(map(repr, names[:5]))}"
        for verb, names in (("lacks", lacking), ("alone has", only))
        if names
    ]
    case = "; they differ only by case: rename them" if alike([*only, *lacking]) else ""
    raise UserError(
        f"{str(root)!r}: {first} and {second} must have the same class folders, but {second} "
        f"{' and '.join(differences)}{case}"
    )


def _listing(root: Path, classes: list[str], found: Found) -> Listing:
    found.beside += sum(map(is_image_name, os.listdir(root)))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here = sorted(images_below(root / name, found))
        if not here:
            raise UserError(
                f"the class folder {str(root / name)!r} has no images ({', '.join(SUFFIXES)}): add some or "
                "remove it"
            )
        paths += here
        labels += [label] * len(here)
    return Listing(tuple(paths), tuple(labels))
