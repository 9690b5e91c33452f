"""The schemes of sweeps: bounds, exact solutions, conservation, order, symmetry, boundaries, reach."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from globalcnn import PDE, Boundary, GatedSweeps, UserError, solve
from globalcnn.ops import BACKENDS, TridiagonalImplicit, eager, reference, spec, sweeps, torch_ops
from globalcnn.ops.judge import NAMES, judge

SCHEMES = (
    GatedSweeps(),
    GatedSweeps("sigmoid", first="y"),
    GatedSweeps("rational"),
    TridiagonalImplicit(),
)
BOUNDARIES = tuple(Boundary)


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int]
    spacing: tuple[int, int]


SIZES = (
    Size((5, 6), (1, 1)),
    Size((1, 7), (1, 1)),
    Size((6, 5), (2, 1)),
    Size((5, 9), (2, 6)),
    Size((4, 3), (4, 5)),
    Size((2, 2), (1, 2)),
)


def drawn(shape: tuple[int, ...], dtype=torch.float64, seed=0, source=True) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name in NAMES}
    return inputs if source else {**inputs, "f": None}


def run(inputs: dict[str, object], pde: PDE, backend: str = "eager") -> Tensor:
    return solve(*(inputs[n] for n in NAMES), pde, backend=backend)


def zeros_but(h: Tensor, **fields: object) -> dict[str, object]:
    zero = torch.zeros_like(h)
    return {"h": h, "h_old": zero, "f": None, "u": zero, "v": zero, "Dx": 0.0, "Dy": 0.0, **fields}


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_eager_is_the_reference(scheme, boundary, monkeypatch):
    for size, graph in itertools.product(SIZES, (False, True)):
        monkeypatch.setattr(sweeps, "wants_a_graph", lambda graph=graph: graph)
        pde = PDE(steps=2, dt=0.7, spacing=size.spacing, boundary=boundary, scheme=scheme)
        inputs = drawn((2, 2, *size.shape))
        expected = reference.solve(*(inputs[n] for n in NAMES), pde)
        found = eager.solve(*(inputs[n] for n in NAMES), pde)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_the_judge_accepts_eager(scheme, boundary, dtype):
    pde = PDE(steps=2, boundary=boundary, scheme=scheme)
    assert not judge(eager.solve, drawn((2, 2, 5, 6), dtype), pde).failed


def test_the_judge_finds_a_wrong_sweep():
    pde = PDE(scheme=GatedSweeps())

    def other_way(*values):
        return eager.solve(*values[:-1], replace(values[-1], scheme=GatedSweeps(first="y")))

    assert "output" in judge(other_way, drawn((2, 2, 5, 6), torch.float32), pde).failed


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    boundary=st.sampled_from(BOUNDARIES),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    spacing=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e9]),
    seed=st.integers(0, 10**6),
)
def test_maximum_principle(scheme, boundary, shape, spacing, scale, seed):
    inputs = drawn((1, 2, *shape), torch.float32, seed, source=False)
    inputs = {n: A if A is None or n == "h" else A * scale for n, A in inputs.items()}
    out = run(inputs, PDE(steps=3, dt=5.0, spacing=spacing, boundary=boundary, scheme=scheme))
    h = inputs["h"]
    low, high = h.amin((2, 3), keepdim=True), h.amax((2, 3), keepdim=True)
    if boundary is Boundary.DIRICHLET:
        low, high = low.clamp(max=0), high.clamp(min=0)
    assert (out >= low - 1e-5).all()
    assert (out <= high + 1e-5).all()


def test_a_step_is_the_inverse_of_its_bidiagonal_factors():
    h = torch.randn(1, 1, 6, 1, dtype=torch.float64)
    u, D = torch.randn_like(h), torch.rand_like(h)
    forward = (D + u.clamp(min=0)).flatten() * 0.5
    backward = (D + (-u).clamp(min=0)).flatten() * 0.5
    lower = torch.eye(6, dtype=h.dtype)
    upper = lower.clone()
    for i in range(6):
        if i > 0:
            lower[i, i] += forward[i]
            lower[i, i - 1] -= forward[i]
        if i < 5:
            upper[i, i] += backward[i]
            upper[i, i + 1] -= backward[i]
    expected = torch.linalg.solve(upper, torch.linalg.solve(lower, h.flatten()))
    out = run(zeros_but(h, u=u, Dx=D, Dy=torch.zeros_like(D)), PDE(dt=0.5, scheme=GatedSweeps()))
    torch.testing.assert_close(out.flatten(), expected)


def test_a_pair_of_equal_gates_is_implicit_diffusion():
    h, g = torch.randn(1, 1, 7, 1, dtype=torch.float64), 0.4
    pde = PDE(dt=1.0, boundary="periodic", scheme=GatedSweeps())
    out = run(zeros_but(h, Dx=g / (1 - g)), pde).flatten()
    number = g / (1 - g) ** 2
    left = out - number * (out.roll(1) + out.roll(-1) - 2 * out)
    torch.testing.assert_close(left, h.flatten())


@pytest.mark.parametrize("spacing", [1, 2, 3])
@pytest.mark.parametrize("scheme", [GatedSweeps(), TridiagonalImplicit()], ids=repr)
def test_constant_coefficients_conserve_the_sum_on_a_periodic_map(scheme, spacing):
    h = torch.rand(1, 1, 9, 8, dtype=torch.float64)
    u = torch.full_like(h, 0.7)
    pde = PDE(steps=3, spacing=spacing, boundary="periodic", scheme=scheme)
    out = run(zeros_but(h, u=u, v=-u, Dx=1.5, Dy=0.3), pde)
    torch.testing.assert_close(out.sum(), h.sum())


def test_diffusion_between_walls_conserves_the_sum():
    h = torch.rand(1, 1, 9, 8, dtype=torch.float64)
    implicit = run(zeros_but(h, Dx=1.5, Dy=0.3), PDE(scheme=TridiagonalImplicit()))
    torch.testing.assert_close(implicit.sum(), h.sum())
    # split by direction, it is conserved to second order in dt: halving dt quarters the change
    change = [
        (run(zeros_but(h, Dx=1.5, Dy=0.3), PDE(dt=dt, scheme=GatedSweeps())).sum() - h.sum()).abs()
        for dt in (0.002, 0.001)
    ]
    assert 3.9 < change[0] / change[1] < 4.1


@dataclass(frozen=True)
class Direction:
    field: str
    sign: float
    corner: tuple[int, int]


@pytest.mark.parametrize(
    "case",
    [
        Direction("u", 1.0, (1, 0)),
        Direction("u", -1.0, (-1, 0)),
        Direction("v", 1.0, (0, 1)),
        Direction("v", -1.0, (0, -1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", [GatedSweeps(), TridiagonalImplicit()], ids=repr)
def test_features_move_along_the_velocity(scheme, case):
    h = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    h[..., 4, 4] = 1
    out = run(zeros_but(h, **{case.field: torch.full_like(h, case.sign)}), PDE(dt=0.5, scheme=scheme))
    i = torch.arange(9.0, dtype=h.dtype) - 4
    mean = ((out[0, 0].sum(1) * i).sum(), (out[0, 0].sum(0) * i).sum())
    assert torch.stack(mean).sign().tolist() == list(map(float, case.corner))


@pytest.mark.parametrize(
    ("scheme", "diffusion"),
    [(GatedSweeps(), 0.0), (TridiagonalImplicit(), 0.0), (TridiagonalImplicit(), 0.02)],
    ids=repr,
)
def test_first_order_in_time_and_space(scheme, diffusion):
    # a wave on the periodic unit interval, moving at 1, to time 0.1
    errors = []
    for n in (128, 256):
        x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        wave = 2 * torch.pi
        h = torch.sin(wave * x).view(1, 1, n, 1)
        steps = n // 8
        # in pixels: velocity n, diffusion n^2
        pde = PDE(steps=steps, dt=0.1 / steps, boundary="periodic", scheme=scheme)
        out = run(zeros_but(h, u=torch.full_like(h, 1.0 * n), Dx=diffusion * n**2), pde).flatten()
        exact = torch.exp(torch.tensor(-diffusion * wave**2 * 0.1)) * torch.sin(wave * (x - 0.1))
        errors.append((out - exact).abs().max().item())
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert errors[1] < 0.1


@pytest.mark.parametrize("scheme", [GatedSweeps(), TridiagonalImplicit()], ids=repr)
def test_first_order_in_time_on_a_fixed_grid(scheme):
    n, u, D = 12, 0.8, 0.5
    h = torch.randn(1, 1, n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(n, dtype=h.dtype)
    rate = (D + u) * (eye.roll(1, 0) - eye) + D * (eye.roll(-1, 0) - eye)
    exact = torch.linalg.matrix_exp(rate) @ h.flatten()
    errors = []
    for steps in (200, 400):
        pde = PDE(steps=steps, dt=1 / steps, boundary="periodic", scheme=scheme)
        out = run(zeros_but(h, u=torch.full_like(h, u), Dx=D), pde).flatten()
        errors.append((out - exact).abs().max().item())
    assert 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_symmetries(scheme, boundary):
    inputs = drawn((1, 2, 4, 6))
    pde = PDE(steps=2, spacing=(2, 1), boundary=boundary, scheme=scheme)
    out = run(inputs, pde)
    swapped = {"u": "v", "v": "u", "Dx": "Dy", "Dy": "Dx"}
    transposed = {n: inputs[swapped.get(n, n)].transpose(2, 3) for n in NAMES}
    other = replace(scheme, first="y" if scheme.first == "x" else "x")
    across = run(transposed, replace(pde, spacing=(1, 2), scheme=other))
    torch.testing.assert_close(across.transpose(2, 3), out)


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)
def test_a_flipped_map_with_reversed_velocity_is_flipped(boundary):
    inputs = drawn((1, 2, 5, 6))
    pde = PDE(boundary=boundary, scheme=TridiagonalImplicit())
    flipped = {n: -A.flip(2) if n == "u" else A.flip(2) for n, A in inputs.items()}
    torch.testing.assert_close(run(flipped, pde).flip(2), run(inputs, pde))


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_one_step_reaches_the_whole_map(scheme):
    h = torch.zeros(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    field = torch.full_like(h, 0.5).detach()
    inputs = {**zeros_but(h), "u": field, "v": field, "Dx": field, "Dy": field}
    out = run(inputs, PDE(dt=1.0, scheme=scheme))
    for i, j in ((0, 0), (0, 15), (15, 0), (15, 15)):
        (grad,) = torch.autograd.grad(out[0, 0, i, j], h, retain_graph=True)
        assert (grad > 0).all()


def test_what_enters_at_the_edges():
    h, u = torch.ones(1, 1, 5, 3, dtype=torch.float64), torch.full((1, 1, 5, 3), 2.0, dtype=torch.float64)
    inside = run(zeros_but(h, u=u), PDE(scheme=GatedSweeps()))
    torch.testing.assert_close(inside, h)  # Neumann: what flows in equals the edge
    outside = run(zeros_but(h, u=u), PDE(scheme=GatedSweeps(), boundary="dirichlet"))
    assert outside[0, 0, :, 0].diff().gt(0).all()  # zeros flow in from above
    torch.testing.assert_close(outside[0, 0, 0, 0].item(), 1 / 1.4)


def test_gates_of_one_all_around_give_the_mean():
    h = torch.randn(1, 1, 6, 1)
    pde = PDE(boundary="periodic", scheme=GatedSweeps("sigmoid"))
    big = torch.full_like(h, 200.0)
    out = run(zeros_but(h, u=big, v=-big, Dx=-big, Dy=-big), pde)
    torch.testing.assert_close(out, h.mean().expand_as(h))


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_gradients_of_both_orders(scheme, boundary):
    inputs = drawn((1, 1, 3, 4))
    inputs["Dx"], inputs["Dy"] = inputs["Dx"].abs() + 0.1, inputs["Dy"].abs() + 0.1
    pde = PDE(steps=1, boundary=boundary, scheme=scheme)
    leaves = tuple(inputs[n].requires_grad_() for n in NAMES)
    assert torch.autograd.gradcheck(lambda *a: eager.solve(*a, pde), leaves)
    if boundary is Boundary.PERIODIC:
        assert torch.autograd.gradgradcheck(lambda *a: eager.solve(*a, pde), leaves)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_there_is_no_limit_of_stability(scheme):
    c = drawn((1, 2, 3, 4))
    ratio = scheme.stability_ratio(c["u"], c["v"], c["Dx"], c["Dy"], PDE(scheme=scheme))
    assert ratio.shape == c["u"].shape
    assert not ratio.any()


def test_the_count_is_literal():
    assert GatedSweeps().multiplies_per_element(0, constant_diffusion=False) == 0
    more = [GatedSweeps().multiplies_per_element(k, constant_diffusion=True) for k in (1, 2, 3)]
    assert more[1] - more[0] == more[2] - more[1] == 4 * 2 + 1  # (1 - g) x + g d per sweep, and dt f


def test_a_boundary_that_is_not_given_is_the_schemes():
    assert PDE().boundary is Boundary.PERIODIC
    assert PDE(scheme=GatedSweeps()).boundary is Boundary.NEUMANN
    assert PDE(scheme=GatedSweeps(), boundary="periodic").boundary is Boundary.PERIODIC


def test_schemes_are_values():
    assert GatedSweeps() == GatedSweeps("transport", "x")
    assert GatedSweeps() != GatedSweeps(first="y")
    assert GatedSweeps() != TridiagonalImplicit()
    assert len({GatedSweeps(), GatedSweeps("transport"), GatedSweeps("sigmoid")}) == 2
    for scheme in (GatedSweeps(g, f) for g, f in itertools.product(spec.GATES, "xy")):
        pde = PDE(scheme=scheme)
        assert spec.scheme_of(torch_ops.pde_arguments(0.0, 0.0, pde)) == scheme


@dataclass(frozen=True)
class Wrong:
    make: object
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Wrong(lambda: GatedSweeps("tanh"), "unknown gate of GatedSweeps 'tanh'"),
        Wrong(lambda: GatedSweeps(first="z"), "axis first= 'z'"),
        Wrong(lambda: TridiagonalImplicit("z"), "axis first= 'z'"),
        Wrong(
            lambda: run(zeros_but(torch.ones(1, 1, 2, 2)), PDE(scheme=GatedSweeps("sigmoid"))),
            "the logit of a gate",
        ),
        Wrong(
            lambda: torch_ops.solve(*[torch.ones(1, 1, 2, 2)] * 7, PDE(scheme=TridiagonalImplicit())),
            "take backend='eager'",
        ),
    ],
    ids=lambda case: case.words,
)
def test_what_is_refused(case):
    with pytest.raises(UserError, match=case.words):
        case.make()


def test_a_fast_backend_says_which_schemes_it_computes():
    native = BACKENDS["native"]
    pde = PDE(scheme=TridiagonalImplicit())
    reason = native.refuses(torch.ones(1, 1, 2, 2), pde)
    assert reason is not None
    assert "not TridiagonalImplicit(first='x')" in reason
    assert "not for TridiagonalImplicit" in (native.why_not_operator("layer", pde) or "")
