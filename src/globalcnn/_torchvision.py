"""Recognises the one broken installation that people really meet: a torchvision built for another torch."""

from __future__ import annotations


def check() -> None:
    """Import torchvision; an ImportError that says what to do where it was built for another torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        raise ImportError(
            f"the installed torchvision was built for another torch than the installed {torch.__version__} "
            f"({error}). Install the two together in a new environment: pip install torch torchvision timm"
        ) from error
