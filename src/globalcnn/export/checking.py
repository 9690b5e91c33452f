"""Comparing a file in its engine with the network that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import UserError
from ..measure.agreement import compare_outputs, tensors_in
from .target import Loaded

TOLERANCE: Final = 1e-4  # of the largest value of each output
REPEATED: Final = 3  # batches that are compared for a file of one shape


@dataclass(frozen=True)
class Check:
    """Batches of one shape that were compared: the largest deviation, as a share of the largest value."""

    shape: tuple[int, ...]
    batches: int
    deviation: float


def same_shape(example: Tensor) -> list[Tensor]:
    """Batches for a file of one shape: the example, and noise."""
    noise = torch.Generator().manual_seed(1)
    return [example, *(torch.randn(example.shape, generator=noise) for _ in range(REPEATED - 1))]


def several_shapes(network: nn.Module, example: Tensor) -> list[Tensor]:
    """Batches for a file of any shape: the example, and noise of other batch sizes, one image among them,
    and of smaller and larger images.

    Raises `UserError` for a network that takes images of the example's size alone.
    """
    noise = torch.Generator().manual_seed(1)
    channels, height, width = example.shape[1:]
    sizes = ((height // 2, width // 2), (height + height // 2, width), (height, width + width // 2 + 1))
    others, reason = [], ""
    for count, size in zip((1, 2, 3), sizes, strict=True):
        batch = torch.randn(count, channels, *size, generator=noise)
        try:
            with torch.no_grad():
                network(batch)
            others.append(batch)
        except Exception as error:  # a network's own checks of sizes raise anything
            reason = _first_line(error)
    if not others:
        raise UserError(
            f"the network takes images of {height} x {width} alone ({reason}): leave dynamic (--dynamic) out "
            "and export a file of that size"
        )
    counts = [n for n in (1, 2, 5) if n != len(example)]
    own = [torch.randn(n, channels, height, width, generator=noise) for n in counts]
    return [example, *own, *others]


@dataclass(frozen=True)
class Sizes:
    """Batches that a program takes, those that it refuses (by conditions that tracing found), and why."""

    taken: list[Tensor]
    refused: list[Tensor]
    notes: tuple[str, ...]

    def check(self, example: Tensor) -> None:
        """Raise `UserError` unless any batch of the example's image size is taken, and another size."""
        size = example.shape[2:]
        if all(b.shape[2:] != size for b in self.refused) and any(b.shape[2:] != size for b in self.taken):
            return
        raise UserError(
            f"the network cannot be exported for any batch and image size: {'; '.join(self.notes)}; leave "
            "dynamic (--dynamic) out and export a file for each shape, or export for larger images "
            "(--image-size)"
        )


def sizes_of(program: ExportedProgram, batches: Sequence[Tensor]) -> Sizes:
    """Which of the batches the program takes."""
    run: Any = program.module()
    found, notes = Sizes([], [], ()), []
    for batch in batches:
        try:
            with torch.no_grad():
                run(batch)
            found.taken.append(batch)
        except Exception as error:  # a condition, or an operator that does not fit
            found.refused.append(batch)
            notes.append(f"it does not take images {_by(batch.shape)}: {_first_line(error)}")
    return replace(found, notes=tuple(notes))


def compare(
    loaded: Loaded, network: nn.Module, sizes: Sizes, *, tolerance: float = TOLERANCE
) -> tuple[Check, ...]:
    """A check for each shape that the file takes; `UserError` where it gives something else than the network,
    or does not run. tolerance: of the largest value; infinite takes any finite output. Of the shapes that the
    program refuses, a file may only refuse or be right as well: an engine does not know the program's
    conditions.
    """
    found: dict[tuple[int, ...], list[float]] = {}
    for batch in sizes.refused:
        with suppress(_NotRun):
            _deviation(loaded, network, batch, tolerance)
    for batch in sizes.taken:
        found.setdefault(tuple(batch.shape), []).append(_deviation(loaded, network, batch, tolerance))
    return tuple(Check(shape, len(d), max(d)) for shape, d in found.items())


class _NotRun(UserError):
    """An engine raised an error."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _by(lengths: Sequence[int]) -> str:
    return "x".join(map(str, lengths))


def hardly_depends(network: nn.Module, batches: Sequence[Tensor]) -> bool:
    """Whether the first output is nearly the same for all these images, as of some untrained networks: then
    a comparison says little.
    """
    alike = [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
    with torch.no_grad():
        rows = torch.stack([tensors_in(network(batch[:1]))[0] for batch in alike]).double()
    spread = (rows.amax(0) - rows.amin(0)).max() / rows.abs().max().clamp_min(1e-30)
    return spread.item() < 10 * TOLERANCE


def _deviation(loaded: Loaded, network: nn.Module, batch: Tensor, tolerance: float) -> float:
    shape = _by(batch.shape)
    with torch.no_grad():
        wanted = tensors_in(network(batch))
    if not all(bool(w.isfinite().all()) for w in wanted):
        raise UserError(
            f"the network's output for images {shape} is not finite, so that no file can be compared with it"
        )
    try:
        with torch.no_grad():
            got = loaded.run(batch)
    except Exception as error:  # whatever an engine raises
        raise _NotRun(
            f"nothing was written: {loaded.engine} does not run the file on images {shape}: "
            f"{_first_line(error)}"
        ) from error
    if len(got) != len(wanted):
        raise UserError(
            f"nothing was written: in {loaded.engine} the file has {len(got)} outputs and the network "
            f"{len(wanted)}"
        )
    worst = 0.0
    for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
        agreement = compare_outputs(one, other, tolerance=tolerance)
        finite = agreement.deviation is not None and math.isfinite(agreement.deviation)
        any_finite = finite and math.isinf(tolerance)
        if agreement.deviation is None or not (agreement or any_finite):
            where = f"output {i}" if len(wanted) > 1 else "the output"
            raise UserError(
                f"nothing was written: in {loaded.engine}, for images {shape}, {where} is not the network's: "
                f"{agreement.disagreement}"
            )
        worst = max(worst, agreement.deviation)
    return worst
