"""The native CPU kernels: right by the one rule, on every instruction set; and what composes with them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import native_patches, native_phases
from globalcnn import PDE, Boundary, GlobalLayer, UserError, solve
from globalcnn.ops import BACKENDS, DuFortFrankel, GatedSweeps, torch_ops, use_backend
from globalcnn.ops.judge import judge
from globalcnn.ops.native import build, instruction_set

HERE = Path(__file__).parent
ABSENT = BACKENDS["native"].unavailable()
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=f"native kernels: {ABSENT}")


def _beside(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


checks, faults = _beside("native_checks"), _beside("faults")
OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def run_checks(*words, **environment):
    return subprocess.run(
        [sys.executable, str(HERE / "native_checks.py"), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_every_instruction_set_is_right(isa):
    if isa == "avx512" and instruction_set() != "avx512":
        pytest.skip("this processor or compiler has no AVX-512")
    if isa == "avx2" and instruction_set() == "plain":
        pytest.skip("this processor or compiler has no AVX2")
    done = run_checks(*([] if isa == instruction_set() else ["--few"]), GLOBALCNN_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith(f"{isa}: 0 findings")


def test_an_unknown_instruction_set_is_said():
    done = run_checks(GLOBALCNN_ISA="sse9")
    assert done.returncode == 1
    assert "GLOBALCNN_ISA='sse9' cannot run on this processor" in done.stdout


@pytest.mark.slow
def test_faults_in_the_kernels_are_found(tmp_path):
    """Each of the faults of faults.py makes the checks fail; a patch that no longer applies says so."""
    sources = faults.switchable_sources(tmp_path / "csrc")
    library = build.build(sources=sources, extra=["-O1"], isas=(), to=tmp_path / "faults.so")
    checks_of_faults = ",".join(fault.check for fault in faults.FAULTS)
    done = run_checks("--faults", checks_of_faults, "--few", GLOBALCNN_NATIVE_LIBRARY=str(library))
    missed = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("fault ")]
    assert not missed, [faults.FAULTS[number - 1].breaks for number in missed]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain: 0 findings" in done.stdout


def test_patches_of_the_kernels_apply(tmp_path):
    for name, patches in native_phases.VARIANTS.items():
        assert native_patches.apply((*native_patches.PHASE_TIMERS, *patches), tmp_path / name).is_dir()
    gone = native_patches.Patch("layer.h", "no such line", "")
    with pytest.raises(native_patches.PatchError, match=r"of layer.h no longer applies: .* occurs 0 times"):
        native_patches.apply([gone], tmp_path / "gone")


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 40)),
    steps=st.integers(0, 20),
    spacing=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    boundary=st.sampled_from(list(Boundary)),
    dtype=st.sampled_from(checks.DTYPES),
    layout=st.sampled_from(sorted(checks.LAYOUTS)),
    learned=st.booleans(),
    source=st.booleans(),
    one=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_drawn_solves_keep_to_the_rule(
    shape, steps, spacing, boundary, dtype, layout, learned, source, one, seed
):
    inputs = checks.fields(
        shape, dtype, layout, seed=seed, learned=learned, source=source, one=one and source
    )
    verdict = judge(
        BACKENDS["native"].run, inputs, PDE(steps=steps, spacing=spacing, boundary=boundary, dt=0.15)
    )
    assert not verdict.failed, verdict


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 40)),
    steps=st.integers(0, 4),
    spacing=st.one_of(st.just(1), st.tuples(st.integers(1, 12), st.integers(1, 12))),
    boundary=st.sampled_from(list(Boundary)),
    gate=st.sampled_from(["transport", "sigmoid", "rational"]),
    first=st.sampled_from(["x", "y"]),
    dtype=st.sampled_from(checks.DTYPES),
    layout=st.sampled_from(sorted(checks.LAYOUTS)),
    learned=st.booleans(),
    source=st.booleans(),
    one=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_drawn_sweeps_keep_to_the_rule(
    shape, steps, spacing, boundary, gate, first, dtype, layout, learned, source, one, seed
):
    inputs = checks.fields(
        shape, dtype, layout, seed=seed, learned=learned, source=source, one=one and source
    )
    pde = PDE(steps=steps, spacing=spacing, boundary=boundary, dt=0.9, scheme=GatedSweeps(gate, first))
    verdict = judge(BACKENDS["native"].run, inputs, pde)
    assert not verdict.failed, verdict


def arguments(dtype=torch.float32, shape=(2, 3, 5, 6), learned=True, source=True, steps=3):
    inputs = checks.fields(shape, dtype, "contiguous", learned=learned, source=source)
    state = [A.requires_grad_() if isinstance(A, torch.Tensor) else A for A in inputs.values()]
    return state, PDE(steps=steps)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("source", [True, False])
def test_opcheck_of_the_solve(learned, source):
    (h, h_old, f, u, v, Dx, Dy), pde = arguments(learned=learned, source=source)
    D = (Dx, Dy) if learned else (None, None)
    plain = torch_ops.numbers(0.0 if learned else Dx, 0.0 if learned else Dy, pde)
    torch.library.opcheck(torch.ops.globalcnn.solve, (h, h_old, f, u, v, *D, *plain))
    state = [None if A is None else A.detach() for A in (h, h_old, f, u, v, *D)]
    torch.library.opcheck(torch.ops.globalcnn.solve_backward, (torch.ones_like(h), *state, *plain))


@pytest.mark.parametrize("layout", sorted(checks.LAYOUTS))
def test_opcheck_of_the_layer(layout):
    given_ = checks.layer_arguments(7, (2, 3, 5, 6), torch.float32, layout, PDE(steps=2))
    torch.library.opcheck(torch.ops.globalcnn.layer, given_)


@pytest.mark.parametrize("layout", sorted(checks.LAYOUTS))
def test_opcheck_of_the_evolution_in_training(layout):
    grad, given_ = checks.evolve_arguments(6, (2, 3, 5, 6), layout, PDE(steps=2))
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in given_]
    torch.library.opcheck(torch.ops.globalcnn.evolve, tuple(leaves))
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in given_]
    _, mean, var = torch.ops.globalcnn.evolve(*plain)
    torch.library.opcheck(
        torch.ops.globalcnn.evolve_backward, (grad, *plain[:5], mean, var, *plain[5:]), test_utils=OPCHECKS
    )


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("first", ["x", "y"])
@pytest.mark.parametrize("boundary", ["neumann", "dirichlet"])
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_layer_with_sweeps_is_that_of_eager(steps, first, boundary, fmt):
    """As networks use it, where the first sweep is fused with the convolutions."""
    layer = GlobalLayer(18, PDE(steps=steps, boundary=boundary, scheme=GatedSweeps(first=first)))
    x = torch.randn(9, 18, 7, 9).contiguous(memory_format=fmt)
    assert "fused training" in layer.explain(x.requires_grad_())
    leaves = [x, *layer.parameters()]
    found = torch.autograd.grad(layer(x).square().sum(), leaves)
    layer.eval()
    with torch.no_grad():
        assert "fused inference" in layer.explain(x)
        out = layer(x)
    with use_backend("eager"):
        with torch.no_grad():
            torch.testing.assert_close(out, layer(x), atol=1e-5, rtol=1e-5)
        expected = torch.autograd.grad(layer.train()(x).square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * (1 + other.abs().max().item()), rtol=1e-4)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_gradcheck_of_the_evolution_in_training(case):
    _, given_ = checks.evolve_arguments(case, (2, 2, 3, 4), "contiguous", PDE(steps=2))
    tensors = [a.requires_grad_() for a in given_ if isinstance(a, torch.Tensor)]

    def evolve(*values):
        left = iter(values)
        arguments_ = (next(left) if isinstance(a, torch.Tensor) else a for a in given_)
        return torch.ops.globalcnn.evolve(*arguments_)[0]

    assert torch.autograd.gradcheck(evolve, tensors)


@pytest.mark.parametrize("boundary", list(Boundary))
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("scheme", [DuFortFrankel(), GatedSweeps()], ids=repr)
def test_gradcheck(boundary, learned, scheme):
    state, _ = arguments(torch.float64, (1, 2, 3, 4), learned=learned)
    pde = PDE(steps=3, spacing=(1, 2), boundary=boundary, scheme=scheme)
    assert torch.autograd.gradcheck(lambda *s: solve(*s, pde, backend="native"), state)


def test_second_derivatives():
    state, pde = arguments(torch.float64, (1, 1, 3, 3), steps=2)
    assert torch.autograd.gradgradcheck(lambda *s: solve(*s, pde, backend="native"), state)


@pytest.mark.parametrize("scheme", [DuFortFrankel(), GatedSweeps()], ids=repr)
def test_threads_change_nothing(scheme):
    state, _ = arguments(shape=(9, 17, 9, 11))
    pde = PDE(steps=2, scheme=scheme)
    layer = checks.layer_arguments(8, (9, 17, 9, 11), torch.float32, "channels-last", pde)
    grad, evolution = checks.evolve_arguments(5, (9, 17, 9, 11), "channels-last", pde)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = solve(*state, pde, backend="native")
            grads = torch.autograd.grad(out.square().sum(), state)
            trained = torch.ops.globalcnn.evolve(*evolution)
            back = torch.ops.globalcnn.evolve_backward(grad, *evolution[:5], *trained[1:], *evolution[5:])
            results.append((out, *grads, torch.ops.globalcnn.layer(*layer), *trained, *back))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def kept_for_backward(backend, steps):
    """Bytes of distinct memory that autograd keeps of one solve."""
    state, _ = arguments(shape=(2, 4, 8, 8))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = solve(*state, PDE(steps=steps), backend=backend)
    assert out.requires_grad
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_the_steps():
    assert kept_for_backward("native", 1) == kept_for_backward("native", 10) > 0
    assert kept_for_backward("eager", 10) > 2 * kept_for_backward("native", 10)


def test_compiled_in_one_graph_with_gradients():
    state, pde = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *s: solve(*s, pde).square(), fullgraph=True, backend="aot_eager")
    expected = solve(*state, pde, backend="native").square()
    torch.testing.assert_close(compiled(*state), expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*state).sum(), state), torch.autograd.grad(expected.sum(), state)
    )


def test_a_compiled_layer_holds_the_operator_and_an_exported_one_does_not():
    layer, x = GlobalLayer(4).eval(), torch.randn(2, 4, 6, 6)
    seen = []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend=look)
        torch.testing.assert_close(compiled(x), layer(x))
        exported = torch.export.export(layer, (x,))
    assert any("globalcnn.layer" in target for target in seen)
    assert not any("globalcnn" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_vmap_and_functional_derivatives():
    (h, h_old, f, u, v, Dx, Dy), pde = arguments(torch.float64)
    many = torch.stack([h, h + 1]).detach()
    mapped = torch.vmap(lambda x: torch_ops.solve(x, h_old, f, u, v, Dx, Dy, pde))(many)
    one_by_one = torch.stack([torch_ops.solve(x, h_old, f, u, v, Dx, Dy, pde) for x in many])
    torch.testing.assert_close(mapped, one_by_one)
    grad = torch.func.grad(lambda x: solve(x, h_old, f, u, v, Dx, Dy, pde).square().sum())(h.detach())
    expected = torch.autograd.grad(solve(h, h_old, f, u, v, Dx, Dy, pde).square().sum(), h)[0]
    torch.testing.assert_close(grad, expected)


def test_flop_counters_see_the_solve():
    state, pde = arguments(shape=(2, 3, 4, 5), steps=4)
    with FlopCounterMode(display=False) as counter:
        solve(*state, pde, backend="native").sum().backward()
    forward = 2 * (28 + 17 * 3) * 2 * 3 * 4 * 5
    assert counter.get_total_flops() == forward + 3 * forward


def test_autocast_keeps_the_state_and_stays_near():
    layer, x = GlobalLayer(8), torch.randn(2, 8, 9, 9)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        out.sum().backward()
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < 0.1


def test_refusals_say_why():
    state, pde = arguments(torch.float16)
    with pytest.raises(UserError, match=r"backend 'native' cannot take .* float16; take backend='eager'"):
        solve(*state, pde, backend="native")
    assert solve(*state, pde).dtype == torch.float16  # by another backend


def test_switched_off_everything_works_without_noise(tmp_path):
    code = (
        "import torch, globalcnn; from globalcnn.ops import BACKENDS; "
        "print(BACKENDS['native'].unavailable()); "
        "m = globalcnn.create_model('resnet_global_tiny_cifar').eval(); "
        "print(tuple(m(torch.zeros(1, 3, 32, 32)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GLOBALCNN_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["switched off by GLOBALCNN_NATIVE=0", "(1, 10)"]
    assert done.stderr == ""
