"""One rule judges every backend: its error against the float64 reference, for the output and the gradient of
every input, is at most twice that of plain PyTorch at the same dtype, and never above a bound set by
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import eager, reference
from .pde import PDE
from .schemes import Field

NAMES = ("h", "h_old", "f", "u", "v", "Dx", "Dy")
Solver = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Field, Field, PDE], Tensor]


@dataclass(frozen=True)
class Verdict:
    """Errors of one backend: `error[name]` against `allowed[name]`, for "output" and "grad NAME"."""

    error: dict[str, float]
    allowed: dict[str, float]

    @property
    def failed(self) -> list[str]:
        """The quantities whose error is above what is allowed (NaN counts as above)."""
        return [name for name, e in self.error.items() if not e <= self.allowed[name]]

    def __str__(self) -> str:
        rows = (f"{n}: error {e:.3g}, allowed {self.allowed[n]:.3g}" for n, e in self.error.items())
        return "; ".join(rows)


def judge(backend: Solver, inputs: dict[str, Field | None], pde: PDE) -> Verdict:
    """Compare `backend` with the reference on `inputs` (keys h, h_old, f, u, v, Dx, Dy; D may be numbers, f
    None).

    The error of a quantity is the largest absolute deviation. Allowed is the larger of: twice the error of
    the eager backend; and 4 units in the last place of the largest value that the reference passes through,
    for results that are exact by chance, growing with the square root of the number of levels, as rounding
    does (in float64 linearly: there the reference rounds as well, and eager rounds in the same way). A
    second bound does not depend on the eager backend, so that eager itself is judged too: 64 (steps + 1)
    such units. An output of another shape or dtype than `h` fails whatever its values; one without a
    gradient counts as one whose gradients are zero.
    """
    h = inputs["h"]
    assert isinstance(h, Tensor)
    dtype = h.dtype
    weight = _cotangent(inputs)
    exact, exact_grads = _outputs(reference.solve, inputs, pde, weight)
    plain = _outputs(eager.solve, inputs, pde, weight)
    found = _outputs(backend, inputs, pde, weight)
    if found[0].shape != h.shape or found[0].dtype != dtype:
        return Verdict({"output": math.inf}, {"output": 0.0})
    unit = torch.finfo(dtype).eps
    rounds = pde.steps + 1 if dtype == torch.float64 else math.sqrt(pde.steps + 1)
    error, allowed = {}, {}
    magnitude = _largest(*(v for v in inputs.values() if isinstance(v, Tensor)), exact)
    for name, target, eager_value, value in (
        ("output", exact, plain[0], found[0]),
        *((f"grad {n}", exact_grads[n], plain[1][n], found[1][n]) for n in exact_grads),
    ):
        scale = max(_largest(target), magnitude)
        error[name] = _deviation(value, target)
        by_plain = max(2 * _deviation(eager_value, target), 4 * rounds * unit * scale)
        by_rounding = 64 * (pde.steps + 1) * unit * scale
        allowed[name] = min(by_plain, by_rounding)
    return Verdict(error, allowed)


def _cotangent(inputs: dict[str, Field | None]) -> Tensor:
    h = inputs["h"]
    assert isinstance(h, Tensor)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h.device)


def _outputs(
    solver: Solver, inputs: dict[str, Field | None], pde: PDE, weight: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {n: v.detach().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    output = solver(*(leaves[n] for n in NAMES), pde)  # type: ignore[arg-type, call-arg]
    tensors = {n: v for n, v in leaves.items() if isinstance(v, Tensor)}
    grads: Sequence[Tensor | None] = [None] * len(tensors)
    if output.requires_grad and output.shape == weight.shape:
        grads = torch.autograd.grad(
            output, list(tensors.values()), weight.to(output.dtype), allow_unused=True
        )
    filled = (torch.zeros_like(v) if g is None else g for g, v in zip(grads, tensors.values(), strict=True))
    return output.detach(), dict(zip(tensors, filled, strict=True))


def _deviation(value: Tensor, target: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    return (value.double() - target.double()).abs().max().item()


def _largest(*tensors: Tensor) -> float:
    return max((t.detach().double().abs().max().item() for t in tensors if t.numel()), default=0.0)
