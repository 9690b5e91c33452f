"""A Global layer whose equation is solved by sweeps: modes, precision, operators, export, diagnostics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from globalcnn import PDE, GatedSweeps, GlobalLayer, UserError
from globalcnn.models.schemes import NAMED_SCHEMES
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import TridiagonalImplicit, spec, torch_ops, use_backend
from globalcnn.ops.torch_ops import decomposition
from tests.ops.drawn_arguments import Case, arguments

SWEEPS = [s for name, s in NAMED_SCHEMES.items() if name != "du-fort-frankel"]


def layer_of(scheme, channels=4, **settings) -> GlobalLayer:
    torch.manual_seed(0)
    layer = GlobalLayer(channels, PDE(scheme=scheme), norm_eps=1e-5, **settings)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    layer(torch.randn(4, channels, 6, 5))  # statistics
    return layer


@pytest.mark.parametrize("scheme", SWEEPS, ids=repr)
def test_fused_and_module_by_module_agree(scheme):
    layer, x = layer_of(scheme).eval(), torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        with use_backend("eager"):
            plain = layer(x)
        torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)
        fused = FusedGlobalLayer.from_layer(layer)
        if fused is None:
            assert isinstance(scheme, TridiagonalImplicit)
        else:
            torch.testing.assert_close(fused(x), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SWEEPS, ids=repr)
def test_training_reaches_every_coefficient(scheme):
    layer = layer_of(scheme).train()
    f = torch.randn(2, 4, 6, 6, requires_grad=True)
    layer(f).square().sum().backward()
    assert f.grad is not None
    for name in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y"):
        assert layer.get_submodule(name).net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    layer, x = layer_of(GatedSweeps()).train(training), torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.3)


def test_logits_are_not_activated():
    layer, x = layer_of(GatedSweeps("sigmoid")).eval(), torch.randn(2, 4, 6, 6)
    assert min(field.min() for field in vars(layer.fields(x, x)).values()) < 0
    layer = layer_of(GatedSweeps()).eval()
    assert min(field.min() for field in vars(layer.fields(x, x)).values()) >= 0


def test_constant_diffusion():
    layer = layer_of(GatedSweeps(), diffusivity=0.5).eval()
    assert layer(torch.randn(1, 4, 1, 5)).shape == (1, 4, 1, 5)
    with pytest.raises(UserError, match="predicts the gates of all sweeps"):
        GlobalLayer(4, PDE(scheme=GatedSweeps("rational")), diffusivity=0.5)


def test_diagnostics_name_the_scheme():
    layer, x = layer_of(GatedSweeps(first="y")).eval(), torch.randn(2, 4, 6, 6)
    assert layer.stability(x).stable
    assert len(layer.evolution(x).levels) == 2
    assert "scheme=GatedSweeps(gate='transport', first='y')" in repr(layer)
    assert layer.explain(x)
    assert layer.pde_multiplies(6, 6) == (10 + 9) * 4 * 36


@pytest.mark.parametrize("gate", spec.GATES)
@pytest.mark.parametrize("operator", ["solve", "layer", "evolve"])
def test_operators_compute_the_layer_in_plain_pytorch(operator, gate):
    case = Case("sweeps", scheme="gated_sweeps", gate=gate, boundary="neumann", y_first=True, act="relu")
    values = list(arguments(operator, case).values())
    with torch.no_grad():
        found = decomposition.run(spec.OPERATORS[operator], values)
    assert all(isinstance(r, Tensor) and r.isfinite().all() for r in found)
    backward = {"solve": "solve_backward"}.get(operator)
    if backward is not None:
        given = dict(zip([a.name for a in spec.SOLVE.arguments], values, strict=True))
        leaves = {n: v.detach().requires_grad_() for n, v in given.items() if isinstance(v, Tensor)}
        out = decomposition.plainly(spec.SOLVE, list({**given, **leaves}.values()))[0]
        grad = torch.randn_like(out)
        names = [n for n in leaves if n != "h_old"]
        expected = torch.autograd.grad(out, [leaves[n] for n in names], grad)
        gradients = decomposition.solve_backward(grad, *values)
        by_name = dict(zip([o.name for o in spec.SOLVE_BACKWARD.returns], gradients, strict=True))
        for n, g in zip(names, expected, strict=True):
            torch.testing.assert_close(by_name[f"g_{n}"], g)
        assert not by_name["g_h_old"].any()


def test_functional_transforms():
    pde = PDE(scheme=GatedSweeps())
    fields = [torch.rand(3, 1, 2, 4, 5, dtype=torch.float64) for _ in range(7)]

    def solved(*values: Tensor) -> Tensor:
        return torch_ops.decomposition.eager.solve(*values, pde)

    stacked = torch.stack([solved(*(f[i] for f in fields)) for i in range(3)])
    torch.testing.assert_close(torch.vmap(solved)(*fields), stacked)
    one = tuple(f[0] for f in fields)
    _, tangent = torch.func.jvp(solved, one, one)
    _, pull = torch.func.vjp(solved, *one)
    weight = torch.rand_like(tangent)
    expected = sum((g * f).sum() for g, f in zip(pull(weight), one, strict=True))
    torch.testing.assert_close((tangent * weight).sum(), expected)


def test_export_with_dynamic_sizes_and_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    layer, x = layer_of(GatedSweeps(), channels=2).eval(), torch.randn(2, 2, 6, 5)
    sides = {2: torch.export.Dim("H", min=2, max=8), 3: torch.export.Dim("W", min=2, max=8)}
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: torch.export.Dim("N", max=8), **sides},), strict=False
    )
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(tmp_path / "layer.onnx"))
    session = runtime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    for shape in ((2, 2, 6, 5), (1, 2, 2, 8), (3, 2, 7, 3)):
        given = torch.randn(shape)
        with torch.no_grad():
            expected = layer(given)
            torch.testing.assert_close(program.module()(given), expected, rtol=1e-4, atol=1e-5)
        (out,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
@pytest.mark.parametrize("scheme", [GatedSweeps(), TridiagonalImplicit()], ids=repr)
def test_a_traced_layer_refuses_another_size(scheme, boundary):
    layer, x = GlobalLayer(4, PDE(scheme=scheme, boundary=boundary)).eval(), torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="split"):
            traced(torch.randn(1, 4, 12, 5))


@pytest.mark.parametrize("scheme", SWEEPS, ids=repr)
def test_under_fx(scheme):
    layer, x = layer_of(scheme).eval(), torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        graph = torch.fx.symbolic_trace(layer)
        torch.testing.assert_close(graph(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_compiled_layer():
    layer, x = layer_of(GatedSweeps(), channels=2).eval(), torch.randn(1, 2, 3, 4)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager")(x)
        torch.testing.assert_close(compiled, layer(x), rtol=1e-4, atol=1e-5)
