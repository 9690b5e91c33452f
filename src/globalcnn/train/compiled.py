"""What a user is told where `torch.compile` cannot compile the network of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError
from .divergence import TrainingDiverged


@contextmanager
def blamed_on_compiling(plain: Callable[[], object]) -> Iterator[None]:
    """A first compiled step: a `UserError` where it fails and `plain()`, the same step as it is, does not.

    Where the plain one fails too, its error is raised: it names the place in the network.
    """
    try:
        yield
    except (UserError, TrainingDiverged, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        with torch.compiler.set_stance("force_eager"):
            plain()
        lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        raise UserError(
            f"torch.compile cannot compile this training ({type(error).__name__}: {lines[0][:300]}): "
            "train it with compile=False (on the command line without --compile)"
        ) from error
