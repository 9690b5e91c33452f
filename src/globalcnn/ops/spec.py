"""The operators' contract, stated once: the arguments of each, in order, and its results.

An operator's arguments are the fields of a frozen dataclass; a field's kind (`signature.py`) says what is
allowed. They define the schemas, packing and unpacking, the checks, the fake implementations, vmap and
autograd (`torch_ops/`), the C++ structs and checks (`native/contract.py` writes `csrc/arguments.h` and
`csrc/calls.h`), and the numbers by which C++ and Triton know boundaries, activations and schemes.

Symbols are those of the glossary in `schemes.py`. A field that is itself a dataclass contributes its fields.

To add an option: add a field here, use it in `torch_ops/decomposition.py` and in the kernels, and run
`python -m globalcnn.ops.native.contract`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from .pde import MAX_SPACING, MAX_STEPS, Boundary
from .schemes import GATES, DuFortFrankel, GatedSweeps, Scheme
from .signature import Count, Enumeration, Flag, Map, Number, Operator, Output, Parameter

# An enumeration is passed by its place in these.
BOUNDARIES = (Boundary.PERIODIC, Boundary.NEUMANN, Boundary.DIRICHLET)
SCHEMES: tuple[type[Scheme], ...] = (DuFortFrankel, GatedSweeps)
ACTIVATIONS = ("identity", "relu", "relu6", "silu", "hardswish")

MAX_TRAINED_KERNEL = 7  # the largest side k of the coefficients' convolutions in training
MAX_KERNEL = 127  # and at inference

BOUNDARY = Enumeration("Boundary", tuple(b.name.lower() for b in BOUNDARIES))
ACTIVATION = Enumeration("Act", ACTIVATIONS)
SCHEME = Enumeration("Scheme", tuple(s.name.replace("-", "_") for s in SCHEMES))
GATE = Enumeration("Gate", GATES)
ENUMERATIONS = (BOUNDARY, ACTIVATION, SCHEME, GATE)

# A field's annotation carries its kind.
_Map = Annotated[Tensor, Map()]
_MaybeMap = Annotated[Tensor | None, Map(optional=True)]
_Weight = Annotated[Tensor, Parameter(("G", "C", "k", "k"), max_kernel=MAX_KERNEL)]
_TrainedWeight = Annotated[Tensor, Parameter(("G", "C", "k", "k"), max_kernel=MAX_TRAINED_KERNEL)]
_PerField = Annotated[Tensor, Parameter(("G", "C"))]
_PerChannel = Annotated[Tensor, Parameter(("C",))]
_NotNegative = Annotated[float, Number(positive=False)]
_Positive = Annotated[float, Number(positive=True)]
_Spacing = Annotated[int, Count(1, MAX_SPACING)]
_Act = Annotated[int, ACTIVATION]
_Flag = Annotated[bool, Flag()]


@dataclass(frozen=True)
class Pde:
    """The equation and its grid; Dx0 and Dy0 are the diffusion where there are no tensors Dx and Dy.

    gate, y_first: of the scheme gated_sweeps: how fields become gates, and whether y is swept before x.
    """

    Dx0: _NotNegative
    Dy0: _NotNegative
    steps: Annotated[int, Count(0, MAX_STEPS)]
    dt: _Positive
    dx: _Spacing
    dy: _Spacing
    boundary: Annotated[int, BOUNDARY]
    scheme: Annotated[int, SCHEME]
    gate: Annotated[int, GATE]
    y_first: _Flag

    @property
    def takes_logits(self) -> bool:
        """Whether the fields are logits of gates, to which a layer applies no activation."""
        return SCHEMES[self.scheme] is GatedSweeps and GATES[self.gate] != "transport"


def scheme_numbers(scheme: Scheme) -> tuple[int, int, bool] | None:
    """The fields scheme, gate and y_first of `Pde`; None for a scheme that the operators do not know."""
    if type(scheme) not in SCHEMES:
        return None
    number = SCHEMES.index(type(scheme))
    if isinstance(scheme, GatedSweeps):
        return number, GATES.index(scheme.gate), scheme.first == "y"
    return number, 0, False


def scheme_of(pde: Pde) -> Scheme:
    """The scheme that `scheme_numbers` numbered."""
    if SCHEMES[pde.scheme] is GatedSweeps:
        return GatedSweeps(GATES[pde.gate], first="y" if pde.y_first else "x")
    return SCHEMES[pde.scheme]()


@dataclass(frozen=True)
class Solve:
    """`globalcnn::solve`: `pde.steps` steps from the levels h_old, h."""

    h: _Map
    h_old: _Map
    f: _MaybeMap
    u: _Map
    v: _Map
    Dx: _MaybeMap
    Dy: _MaybeMap
    pde: Pde


@dataclass(frozen=True)
class SolveBackward:
    """`globalcnn::solve_backward`: the gradients of `solve`'s tensors from that of its result."""

    grad: _Map
    h: _Map
    h_old: _Map
    f: _MaybeMap
    u: _Map
    v: _Map
    Dx: _MaybeMap
    Dy: _MaybeMap
    pde: Pde


@dataclass(frozen=True)
class Layer:
    """`globalcnn::layer`: a Global layer in eval mode, its norms folded into weight, bias, scale and shift.

    shared_product: both coefficients of a pair are act(a act(b)); velocity_from_f: u and v from f and not h;
    start_from_h: the level before is h and not f; source: f drives the equation; residual: f is added.
    """

    h: _Map
    f: _Map
    weight: _Weight
    bias: _PerField
    scale: _PerChannel
    shift: _PerChannel
    pde: Pde
    act: _Act
    shared_product: _Flag
    velocity_from_f: _Flag
    start_from_h: _Flag
    source: _Flag
    residual: _Flag


@dataclass(frozen=True)
class Evolve:
    """`globalcnn::evolve`: h to the evolved state of a Global layer in training (f None: f is h).

    gamma and beta are the weights of the norms; their batch statistics are returned, var biased.
    """

    h: _Map
    f: _MaybeMap
    weight: _TrainedWeight
    gamma: _PerField
    beta: _PerField
    eps: _NotNegative
    pde: Pde
    act: _Act
    shared_product: _Flag
    start_from_h: _Flag
    source: _Flag


@dataclass(frozen=True)
class EvolveBackward:
    """`globalcnn::evolve_backward`: the gradients of `evolve`'s tensors; mean, var: as it returned."""

    grad: _Map
    h: _Map
    f: _MaybeMap
    weight: _TrainedWeight
    gamma: _PerField
    beta: _PerField
    mean: _PerField
    var: _PerField
    eps: _NotNegative
    pde: Pde
    act: _Act
    shared_product: _Flag
    start_from_h: _Flag
    source: _Flag


_DIFFUSION = (("Dx", "Dy"),)
SOLVE = Operator("solve", Solve, (Output("out", "h"),), together=_DIFFUSION)
SOLVE_BACKWARD = Operator(
    "solve_backward",
    SolveBackward,
    tuple(
        Output(f"g_{a.name}", "h", per=a.name if a.kind.optional else None)
        for a in SOLVE.tensors
        if isinstance(a.kind, Map)
    ),
    together=_DIFFUSION,
)
LAYER = Operator("layer", Layer, (Output("out", "h"),))
EVOLVE = Operator(
    "evolve",
    Evolve,
    (Output("out", "h"), Output("mean", "gamma"), Output("var", "gamma")),
    images_alone=False,
)
EVOLVE_BACKWARD = Operator(
    "evolve_backward",
    EvolveBackward,
    (
        Output("g_h", "h"),
        Output("g_f", "h", per="f"),
        Output("g_weight", "weight"),
        Output("g_gamma", "gamma"),
        Output("g_beta", "beta"),
    ),
    images_alone=False,
)
OPERATORS = {o.name: o for o in (SOLVE, SOLVE_BACKWARD, LAYER, EVOLVE, EVOLVE_BACKWARD)}
