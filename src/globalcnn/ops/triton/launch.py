"""From tensors to launches: views, numbers, tile sizes, scratch memory."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..pde import Boundary
from ..spec import BOUNDARIES, Pde
from . import passes, planes
from .parts import NUMBERS

# elements per program of a pass over memory, and the most that a program holds on chip, in float32
PASS_ELEMENTS = 512
BACKWARD_ELEMENTS = 256
CHIP_ELEMENTS = 4096
LONGEST = 64  # the longest side of a plane on chip: two elements per lane of a warp
# contiguous channels from which reading channels-last planes pays
SIDE_BY_SIDE = 4

COMPUTE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
    torch.float64: tl.float64,
}
_WIDE = {tl.float32: torch.float32, tl.float64: torch.float64}

View = tuple[Any, ...] | None


def view(A: Tensor | None) -> View:
    """What a kernel takes for a tensor."""
    return None if A is None else (A, *A.stride())


def numbers(pde: Pde, T: tl.dtype) -> tuple[tuple[float, ...], int]:
    """`numbers` and PARTS of `parts.py`."""
    dt, dx, dy = pde.dt, pde.dx, pde.dy
    bx, by = dt / dx**2, dt / dy**2
    Bx, By = pde.Dx0 * bx, pde.Dy0 * by
    b = 2 * Bx + 2 * By
    return in_parts([dt / dx, dt / dy, bx, by, 2 * dt, Bx, By, 1 - b, 1 / (1 + b)], T)


def in_parts(values: list[float], T: tl.dtype) -> tuple[tuple[float, ...], int]:
    """NUMBERS numbers for `parts.number`; in three parts of float32 they have all digits of a float64."""
    assert len(values) == NUMBERS
    if T is not tl.float64:
        return tuple(values), 1
    parts: list[float] = []
    for _ in range(3):
        parts += (rounded := torch.tensor(values, dtype=torch.float32).tolist())
        values = [value - r for value, r in zip(values, rounded, strict=True)]
    return tuple(parts), 3


def reach(distance: int, n: int, boundary: int) -> int:
    """A neighbour at `distance` in a map of n, counted within the period of the field."""
    kind = BOUNDARIES[boundary]
    if kind is Boundary.DIRICHLET:
        return min(distance, n)
    return distance % (n if kind is Boundary.PERIODIC else 2 * n)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _side_by_side(A: Tensor) -> bool:
    """Whether channels, not columns, are neighbours in memory."""
    return A.stride(1) == 1 and A.shape[1] > 1 and A.shape[2] * A.shape[3] > 1


def pass_tile(like: Tensor, elements: int, in_plane: int | None = None) -> tuple[int, int]:
    """P, S for a kernel that passes over memory once: largest along the contiguous axis.

    in_plane: how many positions of a plane are tiled; None: all.
    """
    in_plane = like.shape[2] * like.shape[3] if in_plane is None else in_plane
    channels, positions = _power_of_two(like.shape[1]), _power_of_two(in_plane)
    if _side_by_side(like):
        P = min(channels, 64, elements)
        return P, min(positions, elements // P)
    S = min(positions, elements)
    return min(channels, elements // S), S


def plane_tile(like: Tensor, T: tl.dtype) -> tuple[int, int, int] | None:
    """P, X, Y for a kernel that holds whole planes, or None where they do not fit."""
    room = CHIP_ELEMENTS // (2 if T is tl.float64 else 1)
    channels, X, Y = map(_power_of_two, like.shape[1:])
    least = min(channels, SIDE_BY_SIDE) if _side_by_side(like) else 1
    if max(X, Y) > LONGEST or least * X * Y > room:
        return None
    # more planes would leave processors without work
    enough = max(least, 8 if _side_by_side(like) else PASS_ELEMENTS // (X * Y))
    return min(channels, room // (X * Y), enough), X, Y


def warps_for(tile: tuple[int, ...], per_thread: int = 4) -> int:
    """Threads for a tile, in warps of 32, each with about so many elements.

    Where neighbours are exchanged, the lanes of a warp are along their axis and warps along the others:
    Triton 3.8 and older cannot gather where there are more warps than that.
    """
    warps = min(16, max(1, math.prod(tile) // (32 * per_thread)))
    if len(tile) == 3:
        longest = max(tile[1:])
        warps = min(warps, max(1, math.prod(tile) // (32 * max(1, longest // 32))))
    return warps


def launch(
    kernel: Any,
    like: Tensor,
    tile: tuple[int, ...],
    *arguments: Any,
    per_thread: int = 4,
    in_plane: int | None = None,
    **settings: Any,
) -> None:
    """Run a kernel over all of `like`, or `in_plane` positions of each plane, in tiles P, S or P, X, Y."""
    N, C, H, W = like.shape
    programs = N * triton.cdiv(C, tile[0])
    if len(tile) == 2:
        programs *= triton.cdiv(H * W if in_plane is None else in_plane, tile[1])
    sides = dict(zip("PS" if len(tile) == 2 else "PXY", tile, strict=True))
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[(programs,)](*arguments, **settings, **sides, num_warps=warps_for(tile, per_thread))


def scratch(like: Tensor, T: tl.dtype) -> Tensor:
    """Memory for one map in the dtype T of the arithmetic."""
    return torch.empty_like(like, dtype=_WIDE[T])


def coefficients(
    like: Tensor,
    h: Tensor,
    carrier: Tensor,
    weight: Tensor,
    bias: Tensor,
    T: tl.dtype,
    network: dict[str, Any],
) -> tuple[View, ...]:
    """A layer's u, v, Dx, Dy in scratch memory; Dx, Dy None where diffusion is constant."""
    made: list[View] = []
    for _ in range(weight.shape[0] // 2):
        a = view(scratch(like, T))
        made += [a, a if network["PRODUCT"] else view(scratch(like, T))]
    made += [None] * (4 - len(made))
    launch(
        planes.fields, like, pass_tile(like, PASS_ELEMENTS), *made, view(h), view(carrier), weight, bias,
        *like.shape[1:], T=T, **network,
    )  # fmt: skip
    return tuple(made)


class Problem:
    """Arguments of every launch of one solve."""

    def __init__(self, like: Tensor, T: tl.dtype, pde: Pde) -> None:
        self.like, self.T = like, T
        self.numbers, parts = numbers(pde, T)
        _, C, H, W = like.shape
        self.sizes = (C, H, W, reach(pde.dx, H, pde.boundary), reach(pde.dy, W, pde.boundary))
        self.settings = {"BOUNDARY": pde.boundary, "T": T, "PARTS": parts}

    def scratch(self) -> Tensor:
        """Memory for one map in the dtype of the arithmetic."""
        return scratch(self.like, self.T)

    def step(
        self,
        out: Tensor,
        h: Tensor,
        h_old: Tensor,
        fields: tuple[View, ...],
        finish: tuple[Any, Any, View] = (None, None, None),
        act: int = 0,
    ) -> None:
        launch(
            passes.step, out, pass_tile(out, PASS_ELEMENTS), view(out), view(h), view(h_old), *fields,
            *finish, self.numbers, *self.sizes, **self.settings, ACT=act,
        )  # fmt: skip

    def evolve(
        self,
        out: Tensor,
        h: Tensor,
        h_old: Tensor,
        fields: tuple[View, ...],
        steps: int,
        finish: tuple[Any, Any, View] = (None, None, None),
        act: int = 0,
    ) -> None:
        """out = the level after `steps` >= 1 steps, each a pass over memory; `finish` is done in the last."""
        *_, older, last = self.levels(h, h_old, fields, steps - 1, keep=False)
        self.step(out, last, older, fields, finish, act)

    def levels(
        self, h: Tensor, h_old: Tensor, fields: tuple[View, ...], steps: int, keep: bool
    ) -> list[Tensor]:
        """[h_old, h, level 1, ..., level `steps`]; unless `keep`, only the last two are right."""
        found = [h_old, h]
        for k in range(steps):
            out = self.scratch() if keep or k < 2 else found[-2]
            self.step(out, found[-1], found[-2], fields)
            found.append(out)
        return found
