"""Checks of the Triton kernels of `GatedSweeps`; like `triton_checks.py`, run by `test_triton.py`."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
import torch

from globalcnn.ops import BACKENDS
from globalcnn.ops.judge import judge
from globalcnn.ops.pde import PDE, Boundary
from globalcnn.ops.schemes import GATES, GatedSweeps

pytest.importorskip("triton")
from globalcnn.ops.triton import launch, run, run_sweeps, sweep_planes, sweeps
from tests.ops.triton_checks import (
    DEVICE,
    LAYOUTS,
    MOST_UNITS,
    _nan_in_new_memory,  # noqa: F401, a fixture
    layer_arguments,
    layer_error,
    solver,
    with_fault,
)

SCHEMES = [GatedSweeps(gate, first) for gate, first in zip(GATES, "xyx", strict=True)]
WALLS = (Boundary.NEUMANN, Boundary.DIRICHLET)


def drawn(shape, dtype=torch.float32, seed=0, *, constant=False, source=True):
    """Fields of both signs, also the diffusion, whose gates below 0 are 0; or a constant diffusion."""
    g = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)
        for name in ("h", "h_old", "f", "u", "v", "Dx", "Dy")
    }
    if constant:
        made |= {"Dx": 0.3, "Dy": 1}
    return made if source else made | {"f": None}


@dataclass(frozen=True)
class Case:
    gate: str
    first: str
    boundary: Boundary
    shape: tuple[int, int, int, int] = (1, 1, 3, 2)
    dtype: torch.dtype = torch.float32
    steps: int = 1
    spacing: tuple[int, int] = (1, 1)
    constant: bool = False
    source: bool = True
    layout: int = 0


P, N, D = Boundary.PERIODIC, Boundary.NEUMANN, Boundary.DIRICHLET
CASES = [
    Case("transport", "x", N, shape=(1, 3, 3, 2), layout=3),
    Case("transport", "y", N, dtype=torch.float64, steps=2, source=False),
    Case("transport", "x", D, shape=(2, 1, 2, 3), constant=True, layout=1),
    Case("transport", "y", P, shape=(1, 1, 4, 3), dtype=torch.float64, spacing=(2, 2)),
    Case("transport", "x", P, shape=(1, 2, 1, 5), spacing=(1, 7), constant=True, layout=2),
    Case("sigmoid", "y", D, dtype=torch.bfloat16, spacing=(2, 3)),
    Case("sigmoid", "x", N, shape=(1, 1, 5, 1), dtype=torch.float64, spacing=(2, 1), layout=1),
    Case("sigmoid", "x", P, shape=(1, 1, 3, 3), dtype=torch.float16, spacing=(2, 3)),
    Case("rational", "y", N, steps=2, spacing=(4, 1)),
    Case("rational", "x", D, shape=(1, 1, 1, 1), dtype=torch.float64),
]


@pytest.fixture(autouse=True)
def _several_tiles(monkeypatch):
    monkeypatch.setattr(run_sweeps, "CHAINS", 4)


def judged(case):
    given = drawn(case.shape, case.dtype, constant=case.constant, source=case.source)
    given = {n: LAYOUTS[case.layout](A) if torch.is_tensor(A) else A for n, A in given.items()}
    pde = PDE(
        steps=case.steps,
        dt=0.7,
        spacing=case.spacing,
        boundary=case.boundary,
        scheme=GatedSweeps(case.gate, case.first),
    )
    return judge(solver(run), given, pde)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_solve_and_its_gradients(case):
    verdict = judged(case)
    assert not verdict.failed, str(verdict)


def only_sweeps(monkeypatch):
    monkeypatch.setattr(launch, "CHIP_ELEMENTS", 0)


def test_a_plane_on_chip_and_sweep_by_sweep_agree(monkeypatch):
    c = drawn((1, 1, 2, 3))
    pdes = [PDE(boundary=b, scheme=s, dt=0.9) for s, b in zip(SCHEMES, itertools.cycle(WALLS), strict=False)]
    on_chip = [solver(run)(**c, pde=pde) for pde in pdes]
    only_sweeps(monkeypatch)
    for pde, expected in zip(pdes, on_chip, strict=True):
        torch.testing.assert_close(solver(run)(**c, pde=pde), expected, rtol=1e-5, atol=1e-6)


def test_gates_of_one_all_around_a_ring_give_the_mean():
    c = drawn((1, 1, 1, 4), source=False)
    c |= {"v": torch.full_like(c["v"], 200.0), "Dx": 0 * c["Dx"], "Dy": 0 * c["Dy"]}
    out = solver(run)(**c, pde=PDE(boundary="periodic", scheme=GatedSweeps("sigmoid")))
    torch.testing.assert_close(out, c["h"].mean().expand_as(out))


def test_no_step_and_no_image():
    for shape, steps in [((1, 2, 2, 3), 0), ((0, 3, 4, 5), 1), ((2, 0, 4, 5), 2)]:
        pde = PDE(steps=steps, scheme=GatedSweeps())
        assert not judge(solver(run), drawn(shape), pde).failed


def test_the_table_of_backends_has_the_scheme():
    assert BACKENDS["triton"].why_not_operator("layer", PDE(scheme=GatedSweeps())) is None
    assert BACKENDS["triton"].why_not_operator("solve", PDE(scheme=GatedSweeps())) is None


@pytest.mark.parametrize("on_chip", [True, False])
def test_the_layer(on_chip, monkeypatch):
    if not on_chip:
        only_sweeps(monkeypatch)
    pick = random.Random(7)
    dtypes = itertools.cycle((torch.float32, torch.bfloat16, torch.float64))
    boundaries = itertools.cycle(WALLS if on_chip else Boundary)
    for k, (scheme, dtype, boundary) in enumerate(zip(SCHEMES, dtypes, boundaries, strict=False)):
        arguments = layer_arguments(
            (1, 2, 2, 3), dtype, pick, boundary=boundary, steps=1 + k // 2, act=k + 1, scheme=scheme
        )
        error = layer_error(arguments)
        assert error <= MOST_UNITS[dtype], f"{scheme} {dtype} {arguments[6:]}: {error} units"


@dataclass(frozen=True)
class Fault:
    """The text `right`, which occurs once, becomes `wrong`; seen with that gate and boundary."""

    module: str
    right: str
    wrong: str
    gate: str = "transport"
    boundary: Boundary = N


FAULTS = [
    Fault("sweeps", "flow < 0, 0.0, flow) + beta", "flow < 0, -flow, flow) + beta"),
    Fault("sweeps", "beta * tl.where(D < 0, 0.0, D)", "beta * D"),
    Fault("sweeps", "by_D = tl.where(D < 0, 0.0, beta)", "by_D = tl.where(D < 0, beta, beta)"),
    Fault("sweeps", "tl.where(alpha * V > 0, alpha, 0.0) * R", "alpha * R"),
    Fault("sweeps", "by_V = g * (1 - g)", "by_V = g", "sigmoid"),
    Fault("sweeps", "z = V\n    if REVERSE", "z = V\n    if not REVERSE", "sigmoid"),
    Fault("sweeps", "by_V = 0.5 * R * R", "by_V = 0.5 * R", "rational"),
    Fault("sweeps", "g = 0.5 + 0.5 * z", "g = 0.5 - 0.5 * z", "rational"),
    Fault("sweeps", "has, g, 0.0)\n        d =", "has, g, g)\n        d =", "sigmoid", N),
    Fault("sweeps", "of_gate = tl.where(has, of_gate, 0.0)", "of_gate = 1 * of_gate"),
    Fault("sweeps", "g * through, (1 - g) * through", "g * through, through"),
    Fault("sweeps", "row_before, column_before, has, T)", "row, column, here, T)"),
    Fault("sweeps", "of_f = number(numbers, 4, T, PARTS) * of_x", "of_f = of_x"),
    Fault("sweeps", "q = (1 - g) * value + g * q", "q = value + g * q", "transport", P),
    Fault("sweeps", "q = g * (at(grad", "q = (at(grad", "transport", P),
    Fault("sweep_planes", "x_next + g_next * x", "x_next + g * x"),
    Fault("sweep_planes", "(m < size - 1)", "(m < size)"),
    Fault("sweep_planes", "reverse=True", "reverse=False"),
    Fault("sweep_planes", "h += dt * f", "h += f"),
    Fault("sweep_planes", "if Y_FIRST:", "if not Y_FIRST:"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.wrong)
def test_a_fault_is_caught(fault, tmp_path, monkeypatch):
    modules = {"sweeps": sweeps, "sweep_planes": sweep_planes}
    # one chain alone, so that a case takes little time; both axes where their order is at fault
    shape = (1, 1, 2, 2) if "Y_FIRST" in fault.right else (1, 1, 1, 3)
    with_fault(modules[fault.module], fault.right, fault.wrong, tmp_path, monkeypatch)
    assert judged(Case(fault.gate, "x", fault.boundary, shape)).failed


def test_activated_logits_in_a_layer_are_caught(tmp_path, monkeypatch):
    with_fault(sweep_planes, "ACT if GATE == TRANSPORT else IDENTITY", "ACT", tmp_path, monkeypatch)
    arguments = layer_arguments(
        (1, 1, 2, 3), torch.float32, random.Random(8), boundary=N, act=3, scheme=GatedSweeps("rational")
    )
    assert layer_error(arguments) > 1000
