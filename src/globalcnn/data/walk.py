"""Walking through folders of images, and counting what is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .pictures import SUFFIXES
from .roles import is_hidden


@dataclass
class Found:
    """Counts of what was skipped or deserves a note. kinds: files that are not images, by suffix."""

    kinds: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0
    beside: int = 0
    deeper: int = 0

    def notes(self) -> tuple[str, ...]:
        """The counts as sentences for the user."""
        notes = []
        if self.kinds:
            kinds = sorted(self.kinds.items(), key=lambda kind: (-kind[1], kind[0]))
            listed = ", ".join(f"{kind} {count}" for kind, count in kinds[:5])
            more = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
            notes.append(f"skipped files that are not images of a known kind: {listed}{more}")
        if self.hidden:
            notes.append(f"skipped hidden or system files in class folders: {self.hidden}")
        if self.links:
            notes.append(f"skipped links to folders in class folders: {self.links}")
        if self.beside:
            notes.append(f"skipped images next to the class folders: {self.beside}")
        if self.deeper:
            notes.append(f"images in nested folders, counted to their class folder: {self.deeper}")
        return tuple(notes)


def subfolders(root: Path) -> list[str]:
    """The names of the visible folders in `root`, links to folders among them, sorted."""
    try:
        inside = [entry for entry in root.iterdir() if not is_hidden(entry.name)]
        for entry in inside:
            if entry.is_symlink() and not entry.exists():
                raise UserError(f"{str(entry)!r} is a broken link: fix or remove it")
        return sorted(entry.name for entry in inside if entry.is_dir())
    except OSError as error:
        raise _unreadable(error, str(root)) from error


def images_below(folder: Path, found: Found) -> Iterator[str]:
    """The paths of the images in a class folder, to any depth; links to folders inside are not followed."""
    for here, folders, names in os.walk(folder, onerror=_refuse):
        found.links += sum(os.path.islink(os.path.join(here, name)) for name in folders)
        found.hidden += sum(map(is_hidden, folders))
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            if is_hidden(name):
                found.hidden += 1
            elif is_image_name(name):
                found.deeper += here != str(folder)
                yield os.path.join(here, name)
            else:
                found.kinds[os.path.splitext(name)[1].lower() or "without suffix"] += 1


def is_image_name(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def holds_images(folder: Path, *, deep: bool = True) -> bool:
    """Whether there is an image in `folder`, or below it if `deep`."""
    try:
        with os.scandir(folder) as entries:  # stops at the first image of what may be very many
            if any(is_image_name(entry.name) and not entry.is_dir() for entry in entries):
                return True
    except OSError as error:
        raise _unreadable(error, str(folder)) from error
    return deep and bool(image_folders(folder))


def image_folders(folder: Path) -> set[str]:
    """The names of the folders below `folder` that hold images themselves."""
    found = set()
    for here, folders, names in os.walk(folder, onerror=_refuse):
        if any(map(is_image_name, names)):
            found.add(os.path.basename(here))
        folders[:] = [name for name in folders if not is_hidden(name)]
    return found


def _refuse(error: OSError) -> None:
    raise _unreadable(error, str(error.filename)) from error


def _unreadable(error: OSError, folder: str) -> UserError:
    return UserError(f"cannot read the folder {folder!r}: {error.strerror or error}")
