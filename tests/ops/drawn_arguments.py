"""Right arguments of every operator, drawn; shared by the tests of derivatives and of wrong arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from globalcnn.ops import signature, spec


@dataclass(frozen=True)
class Case:
    """Which of the operators' options are drawn."""

    name: str
    steps: int = 1
    fields: int = 4  # G; 2: constant diffusion, also in the solve
    kernel: int = 3
    source: bool = True
    shared_product: bool = False
    start_from_h: bool = False
    f_is_h: bool = False  # the absent f of evolve
    boundary: str = "periodic"
    act: str = "silu"
    spacing: tuple[int, int] = (1, 1)
    scheme: str = "du_fort_frankel"
    gate: str = "transport"
    y_first: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("as published"),
    Case("constant diffusion, no source", fields=2, source=False),
    Case("no step", steps=0),
    Case("three steps between walls", steps=3, boundary="neumann", spacing=(1, 2)),
    Case("shared product, f is h", shared_product=True, f_is_h=True),
    Case("start from h, zero outside", steps=2, start_from_h=True, boundary="dirichlet", fields=2),
)


def arguments(
    operator: str, case: Case, shape: tuple[int, int, int, int] = (2, 2, 3, 4), dtype=torch.float64, seed=0
) -> dict[str, object]:
    """The operator's arguments by name, in the schema's order."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"C": shape[1], "G": case.fields, "k": case.kernel}
    absent = set()
    if not case.source:
        absent.add("f")
    if case.fields == 2:
        absent |= {"Dx", "Dy"}
    if operator.startswith("evolve"):
        absent = {"f"} if case.f_is_h else set()
    plain = {
        "Dx0": 0.4,
        "Dy0": 0.7,
        "steps": case.steps,
        "dt": 0.15,
        "dx": case.spacing[0],
        "dy": case.spacing[1],
        "boundary": spec.BOUNDARY.names.index(case.boundary),
        "scheme": spec.SCHEME.names.index(case.scheme),
        "gate": spec.GATE.names.index(case.gate),
        "y_first": case.y_first,
        "act": spec.ACTIVATIONS.index(case.act),
        "eps": 0.1,
        "shared_product": case.shared_product,
        "velocity_from_f": False,
        "start_from_h": case.start_from_h,
        "source": case.source,
        "residual": True,
    }
    made: dict[str, object] = {}
    for a in spec.OPERATORS[operator].arguments:
        if isinstance(a.kind, signature.Map):
            drawn = torch.randn(shape, generator=g, dtype=torch.float64)
            drawn = drawn.abs() + 0.1 if a.name in ("Dx", "Dy") else drawn
            made[a.name] = None if a.kind.optional and a.name in absent else drawn.to(dtype)
        elif isinstance(a.kind, signature.Parameter):
            drawn = torch.randn([sizes[s] for s in a.kind.sizes], generator=g, dtype=torch.float64)
            drawn = drawn.abs() + 0.5 if a.name in ("var", "gamma", "scale") else drawn * 0.4
            made[a.name] = drawn.to(signature.compute_dtype(dtype))
        else:
            made[a.name] = plain[a.name]
    if operator == "evolve_backward":
        forward = {a.name: made[a.name] for a in spec.EVOLVE.arguments}
        _, made["mean"], made["var"] = torch.ops.globalcnn.evolve(*forward.values())
    return made
