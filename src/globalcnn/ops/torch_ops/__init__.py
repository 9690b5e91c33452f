"""The solve and the whole layer as PyTorch operators, `torch.ops.globalcnn.*`: one graph node each.

`schemas.py` defines them from `ops/spec.py`; `decomposition.py` computes them in plain PyTorch where no fast
backend is loaded; `autograd.py`, `vmap.py` and `flops.py` register derivatives, batching rules and costs. The
fast backends register their kernels per device: `native/` on CPUs, `triton/` on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ..pde import PDE
from ..schemes import Field
from ..spec import BOUNDARIES, SCHEMES, SOLVE, Pde, Solve, scheme_numbers
from . import autograd, flops, schemas, vmap

for _part in (schemas, autograd, vmap, flops):
    _part.register()


def pde_arguments(Dx: Field, Dy: Field, pde: PDE) -> Pde:
    """The operators' plain arguments of the equation; Dx0 and Dy0 are 0 where Dx and Dy are tensors."""
    found = scheme_numbers(pde.scheme)
    if found is None:
        known = ", ".join(s.__name__ for s in SCHEMES)
        raise UserError(f"the operators know the schemes {known}, not {pde.scheme!r}; take backend='eager'")
    scheme, gate, y_first = found
    return Pde(
        Dx0=0.0 if isinstance(Dx, Tensor) else float(Dx),
        Dy0=0.0 if isinstance(Dy, Tensor) else float(Dy),
        steps=pde.steps,
        dt=pde.dt,
        dx=pde.spacing[0],
        dy=pde.spacing[1],
        boundary=BOUNDARIES.index(pde.boundary),
        scheme=scheme,
        gate=gate,
        y_first=y_first,
    )


def numbers(Dx: Field, Dy: Field, pde: PDE) -> tuple[Any, ...]:
    """`pde_arguments` in the order of the schemas."""
    return tuple(vars(pde_arguments(Dx, Dy, pde)).values())


def solve(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    """The solve as one operator: signature and result of `eager.solve`.

    Raises `UserError` for a scheme that the operators do not know.
    """
    if isinstance(Dx, Tensor) != isinstance(Dy, Tensor):  # a number and a tensor: both become tensors
        Dx, Dy = (D if isinstance(D, Tensor) else torch.full_like(h, D) for D in (Dx, Dy))
    Dx_map, Dy_map = (D if isinstance(D, Tensor) else None for D in (Dx, Dy))
    given = Solve(h, h_old, f, u, v, Dx_map, Dy_map, pde_arguments(Dx, Dy, pde))
    result: Tensor = torch.ops.globalcnn.solve(*SOLVE.pack(given))
    return result
