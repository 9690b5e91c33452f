"""`ODEBlock`: a layer whose output is the state of an ordinary differential equation at a later time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import MissingExtra, UserError, unknown_name
from .layer import ConvergenceError, ImplicitLayer

Slope = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method: nodes c, rows of a below the diagonal, weights b."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    citation: str

    @property
    def stages(self) -> int:
        """Evaluations per step."""
        return len(self.b)


# "rk4" is the 3/8 rule, as under that name in torchdiffeq, so that the two agree to rounding
FIXED_STEP: Final[dict[str, RungeKutta]] = {
    "euler": RungeKutta(1, (0.0,), ((),), (1.0,), "Euler 1768"),
    "midpoint": RungeKutta(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0), "Runge 1895"),
    "rk4": RungeKutta(
        4,
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        "Kutta 1901, the 3/8 rule",
    ),
}
ADAPTIVE: Final = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass
class _Counts:
    forward: int = 0
    backward: int = 0


class ODEBlock(ImplicitLayer):
    """`y(end_time)` of `dy/dt = f(t, y)` with `y(0)` the input; shapes (N, ...) to the same.

    Parameters
    ----------
    f: module called as `f(t, y)`, t a number or a tensor without axes; it keeps the shape of y.
    method: with an error control, through the package torchdiffeq: "dopri5" (published), "dopri8", "bosh3",
        "fehlberg2", "adaptive_heun"; with a fixed number of steps: "euler", "midpoint", "rk4" (3/8 rule).
    rtol, atol: tolerances of the error control, on the root mean square over the whole batch; 1e-3 each.
        Results therefore depend, within the tolerance, on what else is in the batch.
    steps: number of steps of a method with fixed steps; 8.
    adjoint: integrate backwards in time for the gradient, instead of differentiating the steps that were
        taken (False, published); memory does not grow with the number of evaluations; needs torchdiffeq.
    max_evaluations: an adaptive method, or its adjoint, that needs more raises `ConvergenceError`; 1000.
    end_time: 1.
    nominal_evaluations: how many evaluations the published cost assumes; that of the steps, if they are
        fixed.

    After a forward `evaluations` says how often f ran in it, `backward_evaluations` how often in its backward
    (only the adjoint evaluates f there). Both start at 0 with each forward.

    A method with fixed steps runs the same operations for every input: it compiles and exports. An adaptive
    one does not, since its steps depend on the data.

    Raises `UserError` for settings that do not fit, `MissingExtra` (in forward) without torchdiffeq.

    Source: Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, sections 2 and 3.

    >>> class Decay(nn.Module):
    ...     def forward(self, t, y):
    ...         return -y
    >>> block = ODEBlock(Decay(), "rk4", steps=4)
    >>> bool((block(torch.ones(1, 1)) - math.exp(-1)).abs() < 1e-4), block.evaluations
    (True, 16)
    """

    def __init__(
        self,
        f: nn.Module,
        method: str = "dopri5",
        *,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        steps: int | None = None,
        adjoint: bool = False,
        max_evaluations: int = 1000,
        end_time: float = 1.0,
        nominal_evaluations: int | None = None,
    ) -> None:
        super().__init__()
        if method not in FIXED_STEP and method not in ADAPTIVE:
            raise unknown_name("ODE method", str(method), [*FIXED_STEP, *ADAPTIVE])
        for name, value in {"rtol": rtol, "atol": atol, "end_time": end_time}.items():
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise UserError(f"ODEBlock: {name}={value!r} must be a finite number > 0")
        _check_whole("max_evaluations", max_evaluations)
        if steps is not None:
            if method in ADAPTIVE:
                raise UserError(
                    f"ODEBlock: steps={steps!r} is for {', '.join(FIXED_STEP)}; {method} chooses its own "
                    "steps by rtol and atol"
                )
            _check_whole("steps", steps)
        self.f = f
        self.method = method
        self.rtol, self.atol = rtol, atol
        self.steps = 8 if steps is None else steps
        self.adjoint = adjoint
        self.max_evaluations = max_evaluations
        self.end_time = end_time
        self.nominal_evaluations = nominal_evaluations
        if method in FIXED_STEP:
            needed = self.steps * FIXED_STEP[method].stages
            if needed > max_evaluations:
                raise UserError(
                    f"ODEBlock: steps={self.steps} of {method} take {needed} evaluations, more than "
                    f"max_evaluations={max_evaluations}: lower steps or raise max_evaluations"
                )
            if nominal_evaluations is None:
                self.nominal_evaluations = needed
        self._counts = _Counts()

    @property
    def evaluations(self) -> int:
        """Evaluations of `f` in the last forward (0 before the first one)."""
        return self._counts.forward

    @property
    def backward_evaluations(self) -> int:
        """Evaluations of `f` in the backward of the last forward: those of the adjoint, else 0."""
        return self._counts.backward

    def forward(self, y: Tensor) -> Tensor:
        """The state at `end_time`, in at least single precision."""
        counts = self._counts = _Counts()
        # the state adds up many small steps; f still gets the precision that the layer was given
        state = y.to(torch.promote_types(y.dtype, torch.float32))
        if y.numel() == 0:
            return state
        solving = True

        def slope(t: Any, state: Tensor) -> Tensor:
            if solving:
                counts.forward += 1
            else:
                counts.backward += 1
            if max(counts.forward, counts.backward) > self.max_evaluations:
                raise ConvergenceError(self._too_many())
            return self.f(t, state.to(y.dtype)).to(state.dtype)

        if self.method in FIXED_STEP and not self.adjoint:
            return _march(slope, state, FIXED_STEP[self.method], self.steps, self.end_time)
        try:
            return self._torchdiffeq(slope, state)
        except AssertionError as error:
            reason = str(error).split(":")[0]
            raise ConvergenceError(
                f"ODEBlock: {self.method} broke down ({reason}): the input, a weight or the solution is not "
                "finite, or the solution changes too fast; check them, lower the learning rate, or use fixed "
                "steps (rk4)"
            ) from error
        finally:
            solving = False

    def _torchdiffeq(self, slope: Slope, y: Tensor) -> Tensor:
        try:
            import torchdiffeq
        except ImportError as error:
            feature = f"ODEBlock with method={self.method!r}, adjoint={self.adjoint}"
            raise MissingExtra("torchdiffeq", feature=feature, extra="solvers") from error
        settings: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "method": self.method}
        if self.method in FIXED_STEP:
            settings["options"] = {
                "grid_constructor": lambda f, y0, t: torch.linspace(
                    float(t[0]), float(t[-1]), self.steps + 1, dtype=t.dtype, device=t.device
                )
            }
        t = torch.tensor([0.0, self.end_time], dtype=y.dtype, device=y.device)
        if self.adjoint:
            parameters = tuple(p for p in self.f.parameters() if p.requires_grad)
            return torchdiffeq.odeint_adjoint(slope, y, t, adjoint_params=parameters, **settings)[1]
        return torchdiffeq.odeint(slope, y, t, **settings)[1]

    def _too_many(self) -> str:
        return (
            f"ODEBlock: {self.method} needs more than max_evaluations={self.max_evaluations} evaluations at "
            f"rtol={self.rtol:g}, atol={self.atol:g}: raise rtol and atol, raise max_evaluations, or use "
            f"fixed steps ({', '.join(FIXED_STEP)})"
        )

    def extra_repr(self) -> str:
        """The settings that the submodules do not show."""
        fixed = self.method in FIXED_STEP
        how = f"steps={self.steps}" if fixed else f"rtol={self.rtol:g}, atol={self.atol:g}"
        return f"{self.method}, {how}, adjoint={self.adjoint}, max_evaluations={self.max_evaluations}"


def _march(f: Slope, y: Tensor, method: RungeKutta, steps: int, end_time: float) -> Tensor:
    """`steps` equal steps from 0 to `end_time`."""
    dt = end_time / steps
    for n in range(steps):
        slopes: list[Tensor] = []
        for c, row in zip(method.c, method.a, strict=True):
            stage = y
            for a, slope in zip(row, slopes, strict=True):
                stage = stage + (dt * a) * slope
            slopes.append(f((n + c) * dt, stage))
        for b, slope in zip(method.b, slopes, strict=True):
            if b:
                y = y + (dt * b) * slope
    return y


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"ODEBlock: {name}={value!r} must be a whole number >= 1")
