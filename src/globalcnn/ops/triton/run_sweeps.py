"""The operators for the scheme `GatedSweeps`, launched from its kernels.

Called by `run.py` with checked arguments, maps that are not empty, at least one step and a dtype T to compute
in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton.language as tl
from torch import Tensor

from .. import spec
from ..pde import Boundary
from . import sweep_planes, sweeps
from .launch import View, coefficients, in_parts, launch, pass_tile, plane_tile, scratch, view

# chains that a program runs along side by side
CHAINS = 64


def solve(out: Tensor, a: spec.Solve, T: tl.dtype) -> Tensor:
    """`globalcnn::solve`."""
    problem = Sweeps(out, T, a.pde)
    fields = (view(a.u), view(a.v), view(a.Dx), view(a.Dy))
    whole = problem.plane_tile()
    if whole is None:
        problem.evolve(out, view(a.h), view(a.f), fields)
        return out
    launch(
        sweep_planes.solve_planes, out, whole, view(out), view(a.h), view(a.f), *fields, problem.numbers,
        a.pde.steps, *out.shape[1:], **problem.settings, Y_FIRST=a.pde.y_first, BOUNDARY=a.pde.boundary,
    )  # fmt: skip
    return out


def layer(out: Tensor, a: spec.Layer, T: tl.dtype) -> Tensor:
    """`globalcnn::layer`."""
    problem = Sweeps(out, T, a.pde)
    weight, bias, scale, shift = (A.contiguous() for A in (a.weight, a.bias, a.scale, a.shift))
    carrier = a.f if a.velocity_from_f else a.h
    network = {"K": weight.shape[-1], "PRODUCT": a.shared_product}
    finish = (scale, shift, view(a.f) if a.residual else None)
    whole = problem.plane_tile()
    if whole is not None:
        launch(
            sweep_planes.layer_planes, out, whole, view(out), view(a.h), view(a.f), view(carrier), weight,
            bias, *finish, problem.numbers, a.pde.steps, *out.shape[1:], **problem.settings, **network,
            LEARNED=weight.shape[0] == 4, SOURCE=a.source, Y_FIRST=a.pde.y_first, BOUNDARY=a.pde.boundary,
            ACT=a.act,
        )  # fmt: skip
        return out
    network["ACT"] = spec.ACTIVATIONS.index("identity") if a.pde.takes_logits else a.act
    fields = coefficients(out, a.h, carrier, weight, bias, T, network)
    problem.evolve(out, view(a.h), view(a.f) if a.source else None, fields, finish, a.act)
    return out


def solve_backward(gradients: tuple[Tensor, ...], a: spec.SolveBackward, T: tl.dtype) -> None:
    """`globalcnn::solve_backward`: the levels once more, then the adjoint of each sweep, last first."""
    to_h, to_h_old, to_f, to_u, to_v, to_Dx, to_Dy = gradients
    problem = Sweeps(to_h, T, a.pde)
    f, fields = view(a.f), (view(a.u), view(a.v), view(a.Dx), view(a.Dy))
    to_h_old.zero_()
    steps = a.pde.steps
    of_f = Sums(to_f, steps, problem)
    of_V = [Sums(to, steps * problem.sweeps_of_velocity, problem) for to in (to_u, to_v)]
    of_D = [Sums(to, steps * problem.sweeps_of_diffusion, problem) for to in (to_Dx, to_Dy)]
    starts = [view(a.h)]
    for _ in range(steps - 1):
        starts.append(problem.step(starts[-1], f, fields)[-1])
    grad = view(a.grad)
    for k in reversed(range(steps)):
        to = view(to_h) if k == 0 else view(problem.scratch())
        _adjoint_of_step(problem, grad, starts.pop(), f, fields, (of_f, of_V, of_D), to)
        grad = to


def _adjoint_of_step(
    problem: Sweeps,
    grad: View,
    h: View,
    f: View,
    fields: tuple[View, ...],
    sums: tuple[Sums, list[Sums], list[Sums]],
    to_h: View,
) -> None:
    """to_h = the gradient of h from that of the level after it; adds to the sums for f, (u, v), (Dx, Dy)."""
    of_f, of_V, of_D = sums
    states = [h, *problem.step(h, f, fields)]
    for m in reversed(range(4)):
        s = problem.sweeps[m]
        to = view(problem.scratch()) if m else to_h
        added = (
            (None, None) if m else of_f.add(),
            of_V[s.axis].add() if problem.reads_velocity(s) else (None, None),
            of_D[s.axis].add() if problem.reads_diffusion(s) else (None, None),
        )
        problem.launch_along(
            sweeps.sweep_adjoint, s, grad, states[m], None if m else f, states.pop(), fields[s.axis],
            fields[2 + s.axis], to, *(A for pair in added for A in pair),
        )  # fmt: skip
        grad = to


@dataclass(frozen=True)
class Sweep:
    """One of the four sweeps of a step: the axis, 0 for x and 1 for y, and the direction."""

    axis: int
    reverse: bool


class Sums:
    """The gradient of one input, which several sweeps add to: in scratch memory, the last into the result."""

    def __init__(self, result: Tensor, count: int, problem: Sweeps) -> None:
        self._there = result.ndim == 4
        self._pairs = self._in_turn(result, count, problem)

    def _in_turn(self, result: Tensor, count: int, problem: Sweeps) -> Iterator[tuple[View, View]]:
        so_far = None
        for k in range(count):
            last = k == count - 1
            to = view(result) if last else view(problem.scratch()) if so_far is None else so_far
            yield so_far, to
            so_far = to

    def add(self) -> tuple[View, View]:
        """What there is so far, and where the sum with the next part goes; None where none is wanted."""
        return next(self._pairs) if self._there else (None, None)


class Sweeps:
    """Arguments of every launch of one solve."""

    def __init__(self, like: Tensor, T: tl.dtype, pde: spec.Pde) -> None:
        self.like, self.T, self.pde = like, T, pde
        dt, dx, dy, Dx, Dy = pde.dt, pde.dx, pde.dy, pde.Dx0, pde.Dy0
        bx, by = dt / dx**2, dt / dy**2
        self.numbers, parts = in_parts([dt / dx, dt / dy, bx, by, dt, Dx * bx, Dy * by, Dx, Dy], T)
        self.settings = {"GATE": pde.gate, "T": T, "PARTS": parts}
        axes = (1, 0) if pde.y_first else (0, 1)
        self.sweeps = [Sweep(axis, reverse) for axis in axes for reverse in (False, True)]
        self.sweeps_of_velocity = sum(map(self.reads_velocity, self.sweeps)) // 2
        self.sweeps_of_diffusion = sum(map(self.reads_diffusion, self.sweeps)) // 2

    def reads_velocity(self, sweep: Sweep) -> bool:
        """Whether the gates of a sweep depend on u or v."""
        return not (self.pde.takes_logits and sweep.reverse)

    def reads_diffusion(self, sweep: Sweep) -> bool:
        """Whether the gates of a sweep depend on Dx or Dy."""
        return not self.pde.takes_logits or sweep.reverse

    def scratch(self) -> Tensor:
        """Memory for one map in the dtype of the arithmetic."""
        return scratch(self.like, self.T)

    def plane_tile(self) -> tuple[int, int, int] | None:
        """P, X, Y for the kernels that hold whole planes; None where they do not fit or cannot."""
        if spec.BOUNDARIES[self.pde.boundary] is Boundary.PERIODIC or (self.pde.dx, self.pde.dy) != (1, 1):
            return None
        return plane_tile(self.like, self.T)

    def evolve(
        self,
        out: Tensor,
        h: View,
        f: View,
        fields: tuple[View, ...],
        finish: tuple[Any, Any, View] = (None, None, None),
        act: int = 0,
    ) -> None:
        """out = the level after all steps; `finish` is done in the last sweep."""
        spare = [view(self.scratch()), view(self.scratch())]
        count = 4 * self.pde.steps
        for k in range(count):
            last = k == count - 1
            to = view(out) if last else spare[k % 2]
            self.sweep(to, h, f if k % 4 == 0 else None, fields, self.sweeps[k % 4],
                       finish if last else (None, None, None), act if last else 0)  # fmt: skip
            h = to

    def step(self, h: View, f: View, fields: tuple[View, ...]) -> list[View]:
        """The states after each sweep of one step."""
        found: list[View] = []
        for k, sweep in enumerate(self.sweeps):
            found.append(view(self.scratch()))
            self.sweep(found[-1], found[-2] if k else h, None if k else f, fields, sweep)
        return found

    def sweep(
        self,
        to: View,
        h: View,
        f: View,
        fields: tuple[View, ...],
        sweep: Sweep,
        finish: tuple[Any, Any, View] = (None, None, None),
        act: int = 0,
    ) -> None:
        D = fields[2 + sweep.axis]
        self.launch_along(sweeps.sweep, sweep, to, h, f, fields[sweep.axis], D, *finish, ACT=act)

    def launch_along(self, kernel: Any, sweep: Sweep, *arguments: Any, **settings: Any) -> None:
        """Run a kernel along the chains of an axis."""
        _, C, H, W = self.like.shape
        n, across = (H, W) if sweep.axis == 0 else (W, H)
        offset, starts, length, boundary = chains(
            n, self.pde.dy if sweep.axis else self.pde.dx, self.pde.boundary
        )
        tile = pass_tile(self.like, CHAINS, starts * across)
        launch(
            kernel, self.like, tile, *arguments, self.numbers, C, H, W, offset, starts, length,
            **self.settings, **settings, BOUNDARY=boundary, ALONG_X=sweep.axis == 0, REVERSE=sweep.reverse,
            in_plane=starts * across,
        )  # fmt: skip


def chains(n: int, distance: int, boundary: int) -> tuple[int, int, int, int]:
    """Of a line of n elements with neighbours at a distance: the offset from element to element of a chain,
    how many chains there are, the length of the longest, and their boundary."""
    kind = spec.BOUNDARIES[boundary]
    if kind is Boundary.PERIODIC and distance % n:
        offset = distance % n
        count = math.gcd(n, offset)
        return offset, count, n // count, boundary
    if kind is Boundary.PERIODIC:  # each element is its own neighbour: nothing changes, as between walls
        boundary = spec.BOUNDARIES.index(Boundary.NEUMANN)
    offset = min(distance, n)
    return offset, offset, -(-n // offset), boundary
