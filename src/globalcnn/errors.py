"""Errors that a user can cause, and their messages.

Every message names the argument, its value, what is allowed and how to fix it.  The command line
prints a `UserError` as one line and exits with status 2; in Python it is an ordinary ValueError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave (an argument, a file, data, a shape, a device) does not fit."""


class UserTypeError(UserError, TypeError):
    """Something the user gave has the wrong type."""


class SlowPathWarning(RuntimeWarning):
    """Something runs several times slower than it could here, and one command fixes it. Warned once."""


class MissingExtra(UserError, ImportError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, package: str, *, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed: "
            f'pip install "globalcnn[{extra}]"'
        )


def near_names(name: str, known: Iterable[str], *, most: int = 4) -> list[str]:
    """The known names that look most like `name`, best first.

    >>> near_names("resnet_globl_cifar", ["resnet_global_cifar", "digits_conv"])
    ['resnet_global_cifar']
    """
    return difflib.get_close_matches(name, sorted(set(known)), n=most, cutoff=0.6)


def unknown_name(kind: str, name: str, known: Iterable[str], *, way_out: str = "") -> UserError:
    """The error for a name that is not in a list: says what is near and where the whole list is.

    >>> str(unknown_name("boundary", "perodic", ["periodic", "zero"]))
    "unknown boundary 'perodic'; did you mean 'periodic'? Known: periodic, zero"
    """
    names = sorted(set(known))
    near = near_names(name, names)
    text = f"unknown {kind} {name!r}"
    if near:
        text += "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    else:
        text += ";"
    text += f" {way_out}" if way_out else f" Known: {', '.join(names)}"
    return UserError(text)
