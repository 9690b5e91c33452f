"""Checks of the Triton kernels: with TRITON_INTERPRET=1 in Triton's interpreter on the CPU, else on a GPU.

The interpreter has to be chosen before Triton is imported, so `test_triton.py` runs this file in a process of
its own; pytest does not take it for a file of tests by its name.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from globalcnn.ops import BACKENDS, spec, torch_ops
from globalcnn.ops import triton as backend
from globalcnn.ops.judge import judge
from globalcnn.ops.pde import PDE, Boundary
from globalcnn.ops.schemes import DuFortFrankel
from globalcnn.ops.torch_ops import decomposition

pytest.importorskip("triton")
from globalcnn.ops.triton import launch, passes, planes, run, run_sweeps

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(2, 2, 5, 4), (1, 2, 6, 5), (1, 1, 1, 1), (1, 3, 1, 9), (2, 1, 7, 1), (1, 3, 3, 6)]
DU_FORT_FRANKEL = DuFortFrankel()
ACTIVATION_NUMBERS = range(len(spec.ACTIVATIONS))
SPACINGS = [(1, 1), (1, 2), (3, 1), (4, 5), (9, 12), (2, 23)]


def as_is(A):
    return A


def every_other_column(A):
    """The same values as a view with gaps between them."""
    wide = torch.full((*A.shape[:3], 2 * A.shape[3]), torch.nan, dtype=A.dtype, device=A.device)
    wide[..., ::2] = A
    return wide[..., ::2]


def transposed_in_memory(A):
    return A.transpose(2, 3).contiguous().transpose(2, 3)


def channels_last(A):
    return A.contiguous(memory_format=torch.channels_last)


def one_value_for_all(A):
    """Stride 0: a single number seen as a field."""
    return A.flatten()[:1].reshape(1, 1, 1, 1).expand(A.shape) if A.numel() else A


LAYOUTS = [as_is, every_other_column, transposed_in_memory, channels_last, one_value_for_all]


def solver(run):
    """The two functions `run.solve` and `run.solve_backward` as one that differentiates, for the judge."""

    class Solve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            ctx.save_for_backward(*arguments[:7])
            ctx.plain = arguments[7:]
            return run.solve(*arguments)

        @staticmethod
        def backward(ctx, grad):
            gradients = run.solve_backward(grad, *ctx.saved_tensors, *ctx.plain)
            kept = (None if A is None else g for A, g in zip(ctx.saved_tensors, gradients, strict=True))
            return (*kept, *(None for _ in ctx.plain))

    def solve(h, h_old, f, u, v, Dx, Dy, pde):
        fields = (D if isinstance(D, Tensor) else None for D in (Dx, Dy))
        return Solve.apply(h, h_old, f, u, v, *fields, *torch_ops.numbers(Dx, Dy, pde))

    return solve


def layer_arguments(shape, dtype, pick, *, boundary, act, steps=1, product=None, scheme=DU_FORT_FRANKEL):
    """Arguments of `globalcnn::layer` with options drawn by `pick`."""
    g = torch.Generator().manual_seed(pick.randrange(2**31))
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size, factor=1.0, dtype=wide):
        return (factor * torch.randn(size, generator=g, dtype=torch.float64)).to(DEVICE, dtype)

    channels, k, kinds = shape[1], pick.choice((1, 3, 5)), pick.choice((2, 4))
    h = pick.choice(LAYOUTS)(normal(*shape, dtype=dtype))
    f = h if product is None and pick.random() < 0.3 else pick.choice(LAYOUTS)(normal(*shape, dtype=dtype))
    # small weights: a diffusion below zero, which some activations allow, must not meet R's pole
    weight, bias = normal(kinds, channels, k, k, factor=0.2 / k), normal(kinds, channels, factor=0.1)
    scale, shift = normal(channels), normal(channels)
    diffusion = (0.7, 0.2) if kinds == 2 else (0.0, 0.0)
    spacing = (pick.choice((1, 2, 7)), pick.choice((1, 3, 5)))
    flags = [pick.random() < 0.5 for _ in range(5)]
    if product is not None:
        flags[0] = product
    numbers = (
        *diffusion,
        steps,
        0.2,
        *spacing,
        spec.BOUNDARIES.index(boundary),
        *spec.scheme_numbers(scheme),
    )
    return (h, f, weight, bias, scale, shift, *numbers, act, *flags)


@pytest.fixture(autouse=True)
def _nan_in_new_memory(monkeypatch):
    """What a kernel leaves out is seen."""
    plain = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: plain(*a, **k).fill_(torch.nan))


@pytest.fixture(params=["on chip", "in passes"])
def way(request, monkeypatch):
    """Both ways that solve and layer can take, also with several tiles for one plane."""
    if request.param == "in passes":
        monkeypatch.setattr(launch, "CHIP_ELEMENTS", 0)
        monkeypatch.setattr(launch, "PASS_ELEMENTS", 16)
        monkeypatch.setattr(run, "BACKWARD_ELEMENTS", 16)
    return request.param


@pytest.fixture
def fields_of(draw):
    """`draw`, on the device."""
    return lambda *a, **k: {n: A.to(DEVICE) for n, A in draw(*a, **k).items()}


def draws(count, seed):
    """Settings drawn at random, covering each boundary, dtype and number of steps."""
    pick = random.Random(seed)
    steps = itertools.cycle((1, 2, 1, 3, 1))
    for k, (boundary, dtype) in zip(
        range(count), itertools.cycle(itertools.product(Boundary, DTYPES)), strict=False
    ):
        pde = PDE(
            steps=next(steps),
            dt=pick.uniform(0.01, 0.4),
            spacing=pick.choice(SPACINGS),
            boundary=boundary,
        )
        yield k, pick, pde, dtype


def assert_right(fields_of, pick, pde, dtype, shape):
    fields = fields_of(shape, seed=pick.randrange(2**31), dtype=dtype)
    given = {n: pick.choice(LAYOUTS)(A) for n, A in fields.items()}
    if pick.random() < 0.4:
        given |= {"Dx": 0.3, "Dy": 1}
    if pick.random() < 0.3:
        given["f"] = None
    verdict = judge(solver(run), given, pde)
    assert not verdict.failed, f"{shape} {dtype} {pde}: {verdict}"


def test_solve_and_its_gradients(fields_of, way):
    for k, pick, pde, dtype in draws(12, seed=1 if way == "on chip" else 2):
        assert_right(fields_of, pick, pde, dtype, SHAPES[k % len(SHAPES)])


def test_many_steps_none_and_empty_batches(fields_of, boundary):
    pick = random.Random(0)
    assert_right(fields_of, pick, PDE(steps=20, boundary=boundary), torch.float32, (1, 2, 4, 3))
    for dtype in DTYPES:
        assert_right(fields_of, pick, PDE(steps=0, boundary=boundary), dtype, (2, 2, 4, 3))
    for shape in [(0, 3, 4, 5), (3, 0, 4, 4)]:
        assert_right(fields_of, pick, PDE(steps=2, boundary=boundary), torch.float32, shape)


def test_a_plane_on_chip_and_in_passes_agree(fields_of, monkeypatch, boundary):
    c = fields_of((1, 2, 5, 6), dtype=torch.float32)
    pde = PDE(steps=3, spacing=(2, 1), boundary=boundary)
    on_chip = solver(run)(**c, pde=pde)
    monkeypatch.setattr(launch, "CHIP_ELEMENTS", 0)
    torch.testing.assert_close(on_chip, solver(run)(**c, pde=pde), rtol=1e-5, atol=1e-6)


def test_results_have_the_strides_of_h(fields_of):
    c = fields_of((2, 3, 4, 5), dtype=torch.float32)
    c["h"] = channels_last(c["h"])
    plain = (c["Dx"], c["Dy"], *torch_ops.numbers(c["Dx"], c["Dy"], PDE()))
    state = (c["h"], c["h_old"], None, c["u"], c["v"])
    assert backend.solve(*state, *plain).stride() == c["h"].stride()
    gradients = backend.solve_backward(c["u"], *state, *plain)
    assert [g.numel() for g in gradients] == [120, 120, 0, 120, 120, 120, 120]
    assert all(g.stride() == c["h"].stride() for g in gradients if g.ndim == 4)
    repeated = backend.solve_backward(c["u"], *state, *plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, repeated, strict=True))


def test_other_dtypes_go_to_eager(fields_of, monkeypatch):
    c = fields_of((1, 1, 3, 3), dtype=torch.float32)
    monkeypatch.delitem(launch.COMPUTE, torch.float32)
    monkeypatch.setattr(run, "launch", None)
    monkeypatch.setattr(launch, "launch", None)
    assert not judge(solver(run), c, PDE(steps=2)).failed


def test_the_table_of_backends_has_the_dtypes_that_are_computed():
    for dtype in (*launch.COMPUTE, torch.float8_e4m3fn):
        h = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
        assert (BACKENDS["triton"].refuses(h, PDE()) is None) == (dtype in launch.COMPUTE)


def layer_error(arguments):
    """The largest deviation from plain PyTorch, in units in the last place of the largest value."""
    exact = decomposition.layer(*(a.double() if torch.is_tensor(a) else a for a in arguments))
    out = backend.layer(*arguments)
    assert out.dtype == arguments[0].dtype
    assert out.stride() == torch.empty_like(arguments[0]).stride()
    if out.numel() == 0:
        return 0.0
    unit = torch.finfo(out.dtype).eps * max(1.0, exact.abs().max().item())
    return (out.double() - exact).abs().max().item() / unit


# the convolutions and the steps round, too; stored with fewer digits, the last rounding outweighs them
MOST_UNITS = {torch.float32: 16, torch.float64: 16, torch.bfloat16: 1, torch.float16: 1}


def test_the_layer(way):
    pick = random.Random(3)
    cases = zip(itertools.product(Boundary, DTYPES), itertools.cycle(SHAPES), strict=False)
    for k, ((boundary, dtype), shape) in enumerate(cases):
        arguments = layer_arguments(
            shape, dtype, pick, boundary=boundary, steps=(1, 1, 3)[k % 3], act=k % len(ACTIVATION_NUMBERS)
        )
        error = layer_error(arguments)
        assert error <= MOST_UNITS[dtype], f"{shape} {dtype} {arguments[6:]}: {error} units"


def test_the_layer_without_steps_and_without_images(way):
    pick = random.Random(4)
    for shape, steps in [((2, 3, 4, 5), 0), ((0, 3, 4, 5), 1)]:
        arguments = layer_arguments(
            shape, torch.float32, pick, boundary=Boundary.PERIODIC, steps=steps, act=1
        )
        assert layer_error(arguments) <= MOST_UNITS[torch.float32]


# each changes one term of a kernel; the text on the left occurs once, or as often as stated
FAULTS = {
    "passes": [
        ("total -= two_E *", "total += two_E *"),
        ("total += (2 * Bx - Ax) * x_minus", "total += (2 * Bx + Ax) * x_minus"),
        ("total += (2 * By + Ay) * y_plus", "total += (2 * By + Ay) * y_minus"),
        ("\n    old = at(h_old", "\n    old = at(h"),
        ("(2 * B - A) * m, (2 * B + A) * m, m", "(2 * B + A) * m, (2 * B - A) * m, m"),
        ("e_minus - e_plus if", "e_plus - e_minus if"),
        ("to_h += minus + plus", "to_h += minus"),
        ("- two_E * m", "+ two_E * m"),
        ("level += left * R *", "level += R *"),
        ("put(to_h_old, n, c, i, j, exists, left * m)", "put(to_h_old, n, c, i, j, exists, m)"),
        ("ax * (m * (x_plus - x_minus) + u_E)", "ax * (m * (x_plus - x_minus))"),
        ("through = old + R * new", "through = old"),
        ("2 * m * (y_minus + y_plus - through)", "2 * m * (x_minus + x_plus - through)"),
    ],
    "planes": [
        ("total = left * h_old - two_E * h", "total = left * h_old + two_E * h"),
        ("(2 * Bx - Ax) * shifted(h, i - reach_x", "(2 * Bx - Ax) * shifted(h, i + reach_x"),
        ("        h_old = h\n", ""),
        ("v_plus = shifted(v, j + reach_y, W,", "v_plus = shifted(v, j, W,"),
        ("value = odd(value, mirrored, BOUNDARY)", "value = value"),
        ("value = tl.where(inside, value, 0.0)", "value = value"),
    ],
}  # fmt: skip


def with_fault(module, right, wrong, tmp_path, monkeypatch):
    """A copy of a module of kernels with one term changed, put in its place."""
    source = Path(module.__file__).read_text()
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times in {module.__name__}"
    source = re.sub(r"from \.(\w)", r"from globalcnn.ops.triton.\1", source.replace(right, wrong))
    path = tmp_path / f"faulty_{abs(hash((right, wrong)))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    faulty = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, faulty)
    spec.loader.exec_module(faulty)
    name = module.__name__.split(".")[-1]
    for user in (launch, run, run_sweeps):
        if getattr(user, name, None) is module:
            monkeypatch.setattr(user, name, faulty)


@pytest.mark.parametrize(("where", "right", "wrong"), [(m, *fault) for m in FAULTS for fault in FAULTS[m]])
def test_a_fault_is_caught(fields_of, where, right, wrong, tmp_path, monkeypatch):
    if where == "passes":
        monkeypatch.setattr(launch, "CHIP_ELEMENTS", 0)
    fields = fields_of((1, 2, 4, 3), dtype=torch.float32)
    module = {"passes": passes, "planes": planes}[where]
    with_fault(module, right, wrong, tmp_path, monkeypatch)
    assert any(judge(solver(run), fields, PDE(steps=2, boundary=b)).failed for b in Boundary)


LAYER_FAULTS = [
    ("FIRST + 1, tap", "FIRST, tap"),
    ("activate(a * activate(b, ACT), ACT)", "activate(a * b, ACT)"),
    ("i + tap // K - K // 2", "i + tap // K"),
    ("start if START_FROM_H else source", "source if START_FROM_H else start"),
]


@pytest.mark.parametrize(("right", "wrong"), LAYER_FAULTS)
def test_a_fault_in_the_layer_is_caught(right, wrong, tmp_path, monkeypatch):
    with_fault(planes, right, wrong, tmp_path, monkeypatch)
    errors = [
        layer_error(
            layer_arguments(
                (1, 2, 4, 3),
                torch.float32,
                random.Random(5),
                boundary=Boundary.DIRICHLET,
                act=3,
                product=product,
            )
        )
        for product in (False, True)
    ]
    assert max(errors) > 1000


def test_the_operators_compute_by_these_kernels_on_cuda():
    assert backend.unavailable() is None
    backend.load()
    backend.load()
    for name in ("solve", "solve_backward", "layer"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"globalcnn::{name}", "CUDA")


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_under_compile_and_in_a_cuda_graph(fields_of):
    backend.load()
    c = fields_of((2, 3, 8, 8), dtype=torch.float32)
    solve = partial(torch_ops.solve, pde=PDE(steps=3))
    expected = solve(**c)
    torch.testing.assert_close(torch.compile(solve, fullgraph=True)(**c), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = solve(**c)
    graph.replay()
    torch.testing.assert_close(out, expected)
