"""Recognises a common broken installation: a torchvision built for another torch."""

from __future__ import annotations

from functools import cache
from typing import NoReturn

from .errors import UserError


class BrokenTorchvision(UserError, ImportError):
    """The installed torchvision was built for another torch."""


def check() -> None:
    """Import torchvision; `BrokenTorchvision` says what to do where it was built for another torch."""
    reason = _reason()
    if reason is not None:
        raise BrokenTorchvision(reason)


def refuse(*args: object, **settings: object) -> NoReturn:
    """Placeholder for a function that cannot be imported: a call raises the reason."""
    raise BrokenTorchvision(_reason())


class Refusal:
    """Placeholder for a package that cannot be imported: any use of it raises the reason."""

    def __getattr__(self, name: str) -> NoReturn:
        raise BrokenTorchvision(_reason())


@cache  # a second attempt to import it fails in other ways
def _reason() -> str | None:
    """Why torchvision cannot be imported, None if it can."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        return (
            f"the installed torchvision was built for another torch than the installed {torch.__version__} "
            f"({error}). Install the two together in a new environment: pip install torch torchvision timm"
        )
    return None
