"""Fixed points z = f(z) of a batch: methods as small final classes, run by one driver.

Every sample of the batch has its own fixed point, residual and stop: a converged sample is frozen while the
others iterate, so its result does not depend on the rest of the batch.

Glossary: z state, fz its image, g = fz - z, all (N, D); the residual of a sample is |g| / |fz|, Euclidean
norms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ...errors import UserError


class FixedPointMethod(ABC):
    """Computes the next state from those tried so far. Holds settings only; `start` creates its memory."""

    name: ClassVar[str]
    citation: ClassVar[str]

    @abstractmethod
    def start(self) -> Any:
        """An empty memory."""

    @abstractmethod
    def propose(self, memory: Any, z: Tensor, g: Tensor) -> Tensor:
        """The next state, (N, D), after z whose `f(z) - z` is g; notes both in `memory`."""


@final
@dataclass(frozen=True)
class Picard(FixedPointMethod):
    """`z + damping (f(z) - z)`: plain iteration, for contractions."""

    damping: float = 1.0
    name: ClassVar[str] = "picard"
    citation: ClassVar[str] = "Picard 1890"

    def __post_init__(self) -> None:
        _check_positive("Picard", "damping", self.damping)

    def start(self) -> None:
        """Nothing to remember."""

    def propose(self, memory: None, z: Tensor, g: Tensor) -> Tensor:
        """One damped step."""
        return z + self.damping * g


@dataclass
class _Tried:
    z: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)


@final
@dataclass(frozen=True)
class Anderson(FixedPointMethod):
    """The mixture of the last `memory` states whose mixed residual is least (type II).

    damping: share of the residual that is added to the mixture; regularisation: added to the diagonal of the
    matrix of cosines between the residuals, which bounds the mixture where they are nearly parallel.
    """

    memory: int = 6
    damping: float = 1.0
    regularisation: float = 1e-6
    name: ClassVar[str] = "anderson"
    citation: ClassVar[str] = "Anderson 1965; Walker and Ni, SIAM J. Numer. Anal. 49, 2011, equation 2.1"

    def __post_init__(self) -> None:
        _check_whole("Anderson", "memory", self.memory)
        _check_positive("Anderson", "damping", self.damping)
        _check_positive("Anderson", "regularisation", self.regularisation)

    def start(self) -> _Tried:
        """No state tried yet."""
        return _Tried()

    def propose(self, memory: _Tried, z: Tensor, g: Tensor) -> Tensor:
        """Mix the states kept, after the latest was added to them."""
        memory.z, memory.g = [*memory.z, z][-self.memory :], [*memory.g, g][-self.memory :]
        Z, G = torch.stack(memory.z, 1), torch.stack(memory.g, 1)
        size = G.norm(dim=2, keepdim=True).clamp_min(torch.finfo(G.dtype).tiny)
        direction = G / size
        cosines = direction @ direction.mT
        eye = torch.eye(G.shape[1], dtype=G.dtype, device=G.device)
        # a sample with non-finite values must not stop the others
        usable = cosines.isfinite().flatten(1).all(1)[:, None, None]
        weight = torch.where(usable, size.amin(1, keepdim=True) / size, 1)
        matrix = torch.where(usable, cosines, 0) + self.regularisation * eye
        share = weight * torch.linalg.solve(matrix, weight)
        share = share / share.sum(1, keepdim=True)
        return (share * (Z + self.damping * G)).sum(1)


@dataclass
class _LowRank:
    z: Tensor | None = None
    g: Tensor | None = None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def times(self, x: Tensor) -> Tensor:
        """`B x`, where `B = -1 + sum of u v^T` approximates the inverse Jacobian of g."""
        y = -x
        for u, v in self.pairs:
            y = y + u * (v * x).sum(1, keepdim=True)
        return y

    def transposed_times(self, x: Tensor) -> Tensor:
        """`B^T x`."""
        y = -x
        for u, v in self.pairs:
            y = y + v * (u * x).sum(1, keepdim=True)
        return y


@final
@dataclass(frozen=True)
class Broyden(FixedPointMethod):
    """Broyden's good method for g(z) = 0, with the inverse Jacobian as -1 plus rank-one terms.

    memory: rank-one terms kept; when there are more it starts again from -1. None keeps all. No line search.
    """

    memory: int | None = None
    name: ClassVar[str] = "broyden"
    citation: ClassVar[str] = "Broyden 1965; Bai, Koltun and Kolter, NeurIPS 2020, section 3.3"

    def __post_init__(self) -> None:
        if self.memory is not None:
            _check_whole("Broyden", "memory", self.memory)

    def start(self) -> _LowRank:
        """The inverse Jacobian at first, -1: the first step is a plain iteration."""
        return _LowRank()

    def propose(self, memory: _LowRank, z: Tensor, g: Tensor) -> Tensor:
        """A quasi-Newton step, after the update of the inverse Jacobian from the previous step."""
        if memory.z is not None and memory.g is not None:
            if self.memory is not None and len(memory.pairs) >= self.memory:
                memory.pairs = []
            dz, dg = z - memory.z, g - memory.g
            v = memory.transposed_times(dz)
            scale = (v * dg).sum(1, keepdim=True)
            # no update from a sample that did not move
            learnt = scale.abs() > torch.finfo(z.dtype).eps * v.norm(dim=1, keepdim=True) * dg.norm(
                dim=1, keepdim=True
            )
            u = (dz - memory.times(dg)) / torch.where(learnt, scale, 1)
            memory.pairs.append((torch.where(learnt, u, 0), v))
        memory.z, memory.g = z, g
        return z - memory.times(g)


METHODS: dict[str, type[FixedPointMethod]] = {m.name: m for m in (Picard, Anderson, Broyden)}


@dataclass(frozen=True)
class FixedPoint:
    """What the solver found.

    z, fz: the best state of each sample and its image, (N, D); residual: |fz - z| / |fz|, (N,); converged:
    residual <= tolerance, (N,); evaluations: calls of f; trace: residuals of every evaluation.
    """

    z: Tensor
    fz: Tensor
    residual: Tensor
    converged: Tensor
    evaluations: int
    trace: tuple[Tensor, ...]


def fixed_point(
    f: Callable[[Tensor], Tensor],
    start: Tensor,
    method: FixedPointMethod,
    *,
    tolerance: float | None = 1e-3,
    max_evaluations: int = 30,
) -> FixedPoint:
    """Solve z = f(z) from `start`, (N, D), by `method`.

    Stops when the residual of every sample is at most `tolerance`, or after `max_evaluations` calls of f (>=
    1); each sample gets the best state that was evaluated. With tolerance None all evaluations are made and
    control flow does not depend on the data (`converged` is then all False).

    >>> found = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(1, 3), Broyden(), tolerance=1e-6)
    >>> found.z, found.evaluations
    (tensor([[2., 2., 2.]]), 3)
    """
    _check_whole("fixed_point", "max_evaluations", max_evaluations)
    if tolerance is not None:
        _check_positive("fixed_point", "tolerance", tolerance)
    tiny = torch.finfo(start.dtype).tiny
    z, memory = start, method.start()
    best_z = best_fz = start
    best = torch.full_like(start[:, :1], torch.inf).squeeze(1).detach()
    done = torch.zeros_like(best, dtype=torch.bool)
    trace: list[Tensor] = []
    while True:
        fz = f(z)
        g = fz - z
        residual = (g.norm(dim=1) / (fz.norm(dim=1) + tiny)).detach()
        trace.append(residual)
        better = ((residual < best) & ~done)[:, None]
        best_z, best_fz = torch.where(better, z, best_z), torch.where(better, fz, best_fz)
        best = torch.where(better[:, 0], residual, best)
        if tolerance is not None:
            done = best <= tolerance
            if bool(done.all()):
                break
        if len(trace) == max_evaluations:
            break
        z = torch.where(done[:, None], z, method.propose(memory, z, g))
    return FixedPoint(best_z, best_fz, best, done, len(trace), tuple(trace))


def _check_whole(who: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{who}: {name}={value!r} must be a whole number >= 1")


def _check_positive(who: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UserError(f"{who}: {name}={value!r} must be a finite number > 0")
