"""What a user is told where `torch.compile` cannot compile the network of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError
from .divergence import TrainingDiverged


@contextmanager
def blamed_on_compiling(plain: Callable[[], object]) -> Iterator[None]:
    """Where what is done inside fails, and `plain()`, the same uncompiled, does not: a `UserError`.

    Any step can be the one that compiles: of the first batch, of a smaller last one, of images that grow.
    Where the plain one fails too, its error is raised: it names the place in the network.
    """
    try:
        yield
    except (UserError, TrainingDiverged, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        with torch.compiler.set_stance("force_eager"):
            plain()
        told = str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]  # advice to those who debug PyTorch
        reason = " ".join(told.split())[:300] or "no reason given"
        raise UserError(
            f"torch.compile cannot compile this training ({type(error).__name__}: {reason}): train "
            "it with compile=False (on the command line without --compile)"
        ) from error
