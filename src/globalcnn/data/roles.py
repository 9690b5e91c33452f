"""Names of files and folders: which name splits, and which are not data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ROLES = {
    "train": ("train", "training", "trn", "learn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
_FILLING = {
    "set",
    "sets",
    "split",
    "data",
    "dataset",
    "images",
    "image",
    "imgs",
    "img",
    "pictures",
    "samples",
}
_SYSTEM = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"}
_SYSTEM |= {"system volume information"}


def role_of(name: str) -> str | None:
    """ "train", "val" or "test" if folders of this name usually hold that split, else None.

    Case, digits and words such as set or images do not count.

    >>> [role_of(name) for name in ("Training", "test_set", "val2017", "TestImages", "cat", "train station")]
    ['train', 'test', 'val', 'test', None, None]
    """
    roles = [_role(word) for word in _words(name)]
    return roles[0] if len(roles) == 1 else None


def names_role(name: str) -> bool:
    """Whether one of the words in the name names a split.

    >>> names_role("seg_train"), names_role("training")
    (True, True)
    """
    return any(_role(word) for word in _words(name))


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.findall(r"[^\W\d_]+", spaced.lower()) if word not in _FILLING]


def _role(word: str) -> str | None:
    return _ROLE_OF.get(word) or _ROLE_OF.get(re.sub(r"(set|data|images)$", "", word))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to an operating system.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("Thumbs.db"), is_hidden("cat")
    (True, True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only by case or by Unicode normalisation.

    >>> alike(["cat", "dog", "Cat"])
    [('cat', 'Cat')]
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs
