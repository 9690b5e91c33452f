"""`Equilibrium`: a layer whose output is a fixed point of its function, found by a solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from ...errors import UserError
from .fixed_point import Broyden, FixedPoint, FixedPointMethod, fixed_point
from .layer import ConvergenceError, ImplicitLayer

States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Solver:
    """Settings of the solver: method, tolerance on |f(z) - z| / |f(z)| per sample, limit on evaluations.

    tolerance None makes every evaluation; control flow then does not depend on the data.
    """

    method: FixedPointMethod = field(default_factory=Broyden)
    tolerance: float | None = 1e-3
    max_evaluations: int = 30

    def __call__(self, f: Callable[[Tensor], Tensor], start: Tensor) -> FixedPoint:
        """Solve z = f(z) from `start`, (N, D)."""
        return fixed_point(
            f, start, self.method, tolerance=self.tolerance, max_evaluations=self.max_evaluations
        )


@dataclass
class _Report:
    """Statistics of the last forward and its backward."""

    evaluations: int = 0
    residual: Tensor | None = None
    converged: Tensor | None = None
    backward_evaluations: int = 0
    backward_residual: Tensor | None = None
    backward_converged: Tensor | None = None


class Equilibrium(ImplicitLayer):
    """The fixed point `z = f(z, *inputs)` of a tuple of tensors, each (N, ...).

    Parameters
    ----------
    f: module called as `f(states, *inputs)`, from a tuple of tensors to one of the same shapes. It must treat
        the samples of a batch independently (no BatchNorm), and be the same function during one
        forward (dropout masks are inputs).
    solver: how to find the fixed point; Broyden, tolerance 1e-3, at most 30 evaluations.
    backward: the same for the linear equation `y = y df/dz + grad` of the gradient, from y = 0; None: as
        `solver`. A sample that never improves on the start gets the gradient of "jacobian_free".
    gradient: "implicit" solves that equation: memory of one evaluation, exact at the fixed point (published);
        "unrolled" differentiates the iterations of the solver, for checks; "jacobian_free" leaves df/dz out,
        a cheap descent direction.
    on_failure: where a sample does not reach the tolerance, "accept" its best state so far and count it in
        `unconverged` (published), or raise `ConvergenceError` ("error").
    nominal_evaluations: how many evaluations the published cost assumes; None: as many as a forward needs.

    The output is the image `f(z)` of the state found, with and without gradient. For a gradient ("implicit",
    "jacobian_free") f runs once more, on that state; `evaluations` includes it.

    After a forward: `evaluations`, `residual` and `converged` (per sample, (N,)), `unconverged` (how many);
    after a backward `backward_evaluations` (products of a vector with df/dz), `backward_residual`,
    `backward_converged`.

    `unroll`: an attribute; a whole number replaces the solver by that many plain iterations from the start
    (with their gradient), as for the first steps of training; None (the default): the solver.

    The solver's control flow depends on the data: it does not compile into one graph or export. With
    `unroll`, or a tolerance of None, it runs the same operations for every input.

    Source: Bai, Kolter and Koltun, "Deep Equilibrium Models", NeurIPS 2019, theorem 1; jacobian_free: Fung et
    al., "JFB: Jacobian-Free Backpropagation for Implicit Networks", AAAI 2022.

    >>> class Half(nn.Module):
    ...     def forward(self, states, x):
    ...         return (states[0] / 2 + x,)
    >>> layer, x = Equilibrium(Half()), torch.ones(1, 4, requires_grad=True)
    >>> (z,) = layer((torch.zeros(1, 4),), x)
    >>> z.sum().backward()
    >>> z.tolist(), x.grad.tolist(), bool(layer.converged)
    ([[2.0, 2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0, 2.0]], True)
    """

    def __init__(
        self,
        f: nn.Module,
        solver: Solver | None = None,
        *,
        backward: Solver | None = None,
        gradient: Literal["implicit", "unrolled", "jacobian_free"] = "implicit",
        on_failure: Literal["accept", "error"] = "accept",
        nominal_evaluations: int | None = None,
    ) -> None:
        super().__init__()
        _check_choice("gradient", gradient, ("implicit", "unrolled", "jacobian_free"))
        _check_choice("on_failure", on_failure, ("accept", "error"))
        self.f = f
        self.solver = Solver() if solver is None else solver
        self.backward_solver = self.solver if backward is None else backward
        self.gradient = gradient
        self.on_failure = on_failure
        self.nominal_evaluations = nominal_evaluations
        self.unroll: int | None = None
        self._report = _Report()

    @property
    def evaluations(self) -> int:
        """Evaluations of `f` in the last forward (0 before the first one)."""
        return self._report.evaluations

    @property
    def residual(self) -> Tensor | None:
        """|f(z) - z| / |f(z)| of each sample in the last forward, (N,); None before it or if unrolled."""
        return self._report.residual

    @property
    def converged(self) -> Tensor | None:
        """Whether each sample reached the tolerance in the last forward, (N,)."""
        return self._report.converged

    @property
    def unconverged(self) -> int:
        """How many samples did not reach the tolerance in the last forward."""
        return 0 if self.converged is None else int((~self.converged).sum())

    @property
    def backward_evaluations(self) -> int:
        """Products of a vector with df/dz in the backward of the last forward."""
        return self._report.backward_evaluations

    @property
    def backward_residual(self) -> Tensor | None:
        """Relative residual of the gradient's equation for each sample, (N,), after a backward."""
        return self._report.backward_residual

    @property
    def backward_converged(self) -> Tensor | None:
        """Whether the gradient of each sample reached the tolerance, (N,), after a backward."""
        return self._report.backward_converged

    def forward(self, start: Sequence[Tensor], *inputs: Any) -> States:
        """The fixed point, a tuple of tensors like `start`, found from there."""
        pack = _Packing(start)
        report = self._report = _Report()

        def image(z: Tensor) -> Tensor:
            report.evaluations += 1
            return pack.join(self.f(pack.split(z), *inputs))

        z = pack.join(tuple(start))
        if z.numel() == 0:
            return tuple(start)
        with _weights_computed_once(self.f):
            if self.unroll is None:
                z = self._found(image, z, report)
            else:
                for _ in range(self.unroll):
                    z = image(z)
        return pack.split(z)

    def _found(self, image: Callable[[Tensor], Tensor], start: Tensor, report: _Report) -> Tensor:
        """The image of the state found, with its gradient where one is wanted."""
        differentiate = torch.is_grad_enabled()
        with torch.set_grad_enabled(differentiate and self.gradient == "unrolled"):
            found = self.solver(image, start)
        if not torch.compiler.is_compiling():
            report.residual, report.converged = found.residual, found.converged
            self._check("forward iteration", self.solver, found)
        if not differentiate or self.gradient == "unrolled":
            return found.fz
        z = found.z.detach().requires_grad_()
        fz = image(z)
        if self.gradient == "jacobian_free":
            return fz
        return _ImplicitGradient.apply(fz, self._gradient_solver(z, fz, report))

    def _gradient_solver(self, z: Tensor, fz: Tensor, report: _Report) -> Callable[[Tensor], Tensor]:
        """A function from the gradient at the output to the solution y of `y = y df/dz + grad`."""

        def solved(grad: Tensor) -> Tensor:
            def product(y: Tensor) -> Tensor:
                (back,) = torch.autograd.grad(fz, z, y, retain_graph=True, allow_unused=True)
                return grad if back is None else back + grad

            found = self.backward_solver(product, torch.zeros_like(grad))
            report.backward_evaluations = found.evaluations
            report.backward_residual, report.backward_converged = found.residual, found.converged
            self._check("backward iteration", self.backward_solver, found)
            return found.fz

        return solved

    def _check(self, which: str, solver: Solver, found: FixedPoint) -> None:
        if self.on_failure == "accept" or solver.tolerance is None or bool(found.converged.all()):
            return
        raise ConvergenceError(
            f"Equilibrium: the {which} by {solver.method.name} left {int((~found.converged).sum())} of "
            f"{len(found.converged)} samples above tolerance={solver.tolerance:g} after "
            f"max_evaluations={solver.max_evaluations} (worst residual {found.residual.max().item():.3g}): "
            'raise max_evaluations or tolerance, or take the best state with on_failure="accept"'
        )

    def extra_repr(self) -> str:
        """The settings that the submodules do not show."""
        return f"{self.solver}, gradient={self.gradient}, on_failure={self.on_failure}"


class _Packing:
    """A tuple of tensors (N, ...) as one (N, D) in at least single precision, and back."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        if not like:
            raise UserError("Equilibrium: start is empty; it must be a tuple of tensors (N, ...)")
        self.shapes = [state.shape for state in like]
        self.sizes = [state[:1].numel() for state in like]
        self.dtypes = [state.dtype for state in like]
        self.dtype = torch.promote_types(like[0].dtype, torch.float32)

    def join(self, states: Sequence[Tensor]) -> Tensor:
        if [state.shape for state in states] != self.shapes:
            raise UserError(
                f"Equilibrium: f returned shapes {[tuple(s.shape) for s in states]}; it must keep those of "
                f"the start, {[tuple(shape) for shape in self.shapes]}"
            )
        return torch.cat([state.to(self.dtype).flatten(1) for state in states], 1)

    def split(self, z: Tensor) -> States:
        parts = z.split(self.sizes, 1)
        return tuple(
            part.reshape(shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        )


class _ImplicitGradient(torch.autograd.Function):
    """Identity whose backward replaces the gradient by the solution of the gradient's equation."""

    @staticmethod
    def forward(ctx: Any, fz: Tensor, solved: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solved = solved
        return fz.view_as(fz)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solved(grad), None


@contextmanager
def _weights_computed_once(f: nn.Module) -> Iterator[None]:
    """Parametrised weights (weight norm) of `f` are computed once for all evaluations inside."""
    if torch.compiler.is_compiling():
        yield
        return
    with parametrize.cached():
        # first here, where gradients are on if they are wanted: made inside the solver they carry no graph
        for module in f.modules():
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:  # type: ignore[union-attr]
                    getattr(module, name)
        yield


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"Equilibrium: {name}={value!r} must be one of {', '.join(map(repr, allowed))}")
