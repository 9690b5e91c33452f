"""UniformGlobalLayer: the scheme with fields that are the same everywhere; one convolution once folded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from globalcnn import PDE
from globalcnn.errors import UserError
from globalcnn.graph import fold_batch_norms
from globalcnn.measure import count
from globalcnn.nn import UniformGlobalLayer
from globalcnn.nn.padding import pad_both
from globalcnn.ops import Boundary, reference

X = torch.randn(3, 4, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    pde: PDE
    coefficients: str = "constant"
    diffusivity: float | tuple[float, float] | None = None
    bounded: bool = True


CASES = [
    Case("one step, zero beyond the edge", PDE(boundary="dirichlet")),
    Case("one step, periodic", PDE()),
    Case("one step, Neumann, spacing", PDE(boundary="neumann", spacing=(3, 2))),
    Case("five steps, periodic", PDE(steps=5)),
    Case("five steps, periodic, further than the map", PDE(steps=5, spacing=(3, 2), dt=0.5)),
    Case("three steps, zero beyond the edge", PDE(steps=3, boundary="dirichlet")),
    Case("three steps, Neumann", PDE(steps=3, boundary="neumann"), diffusivity=(1.0, 0.5)),
    Case("no diffusion", PDE(), diffusivity=0.0),
    Case("not bounded", PDE(spacing=2), bounded=False),
    Case("by the image", PDE(boundary="dirichlet"), "image-affine"),
    Case("by the image, all channels, periodic", PDE(), "image-linear", 1.0),
    Case("by the image, two steps, Neumann", PDE(steps=2, boundary="neumann"), "image-linear"),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def made(case: Case) -> UniformGlobalLayer:
    torch.manual_seed(0)
    layer = UniformGlobalLayer(
        4, case.pde, coefficients=case.coefficients, diffusivity=case.diffusivity, bounded=case.bounded
    ).double()
    nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    nn.init.normal_(layer.norm.bias)
    if layer.predictor is not None:
        nn.init.normal_(layer.predictor.weight, std=2.0)
    for _ in range(3):
        layer(X * 2 + 1)
    return layer.eval()


def evolved(layer: UniformGlobalLayer, x: Tensor) -> Tensor:
    """By the reference, on a map continued so far beyond the edge that its own edge is not felt."""
    reach = [d * (layer.pde.steps + 1) for d in layer.pde.spacing]
    H = x.double()
    fields = [c.double()[..., None, None] for c in layer.coefficients(x)]
    # the velocity does not end at the edge, so each step continues the state anew, and crops it
    levels, here = [H, H], layer.pde
    for _ in range(here.steps):
        older, now, source = (pad_both(t, tuple(reach), here.boundary) for t in (*levels[-2:], H))
        whole = [c.expand_as(now) for c in fields]
        step = reference.solve(now, older, source, *whole, replace(here, steps=1, boundary=Boundary.PERIODIC))
        levels.append(step[:, :, reach[0] : -reach[0], reach[1] : -reach[1]])
    return levels[-1]


@EACH
@torch.no_grad()
def test_it_is_the_scheme_with_fields_that_are_the_same_everywhere(case):
    layer = made(case)
    expected = layer.act(layer.norm(evolved(layer, X)))
    torch.testing.assert_close(layer(X), expected, rtol=1e-10, atol=1e-10)


@EACH
@torch.no_grad()
def test_folded_it_is_the_same_function(case):
    layer = made(case)
    net = nn.Sequential(layer)
    expected = net(X)
    fold_batch_norms(net)
    one = case.coefficients == "constant" and (case.pde.steps == 1 or case.pde.boundary is Boundary.PERIODIC)
    convolutions = [
        m for m in net.modules() if type(m) is nn.Conv2d and m.groups == 4 and m.kernel_size != (1, 1)
    ]
    assert [m.kernel_size for m in convolutions] == ([(2 * case.pde.steps + 1,) * 2] if one else [])
    torch.testing.assert_close(net(X), expected, rtol=1e-10, atol=1e-10)
    tall = X.transpose(2, 3).contiguous()
    torch.testing.assert_close(net(tall), layer(tall), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("coefficients", ["constant", "image-affine"])
def test_a_bounded_layer_is_stable_whatever_was_learned(coefficients, scale):
    for diffusivity in (None, 0.0, (1.0, 0.0), 2.0):
        layer = UniformGlobalLayer(4, PDE(dt=0.5), coefficients=coefficients, diffusivity=diffusivity)
        for p in layer.parameters():
            nn.init.normal_(p, std=scale)
        assert layer.stability(X.float() * scale).ratio <= 1


def test_an_unbounded_layer_reports_that_it_is_not_stable():
    layer = UniformGlobalLayer(4, bounded=False)
    nn.init.constant_(layer.numbers, 50.0)
    found = layer.stability(X.float())
    assert found.ratio > 1
    assert not found.stable


@pytest.mark.parametrize("case", [CASES[3], CASES[9], CASES[7]], ids=lambda c: c.name)
def test_gradients(case):
    layer = made(case)
    x = X[:2, :, :3, :4].clone().requires_grad_()
    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(lambda *_: layer.norm(layer._evolve(x)), inputs)


def test_counts():
    layer = UniformGlobalLayer(4, coefficients="image-affine")
    found = count(layer, (4, 5, 5))
    assert found.params == 8 * 4 + 2 * 4
    assert (found.macs_pde, found.macs) == (9 * 4 * 25, 9 * 4 * 25 + 16)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[9], CASES[11]], ids=lambda c: c.name)
@torch.no_grad()
def test_it_exports_to_onnx_folded(case):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = nn.Sequential(made(case).float())
    expected = net(X.float())
    fold_batch_norms(net)
    file = io.BytesIO()
    torch.onnx.export(net, (X.float(),), dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_exports_by_the_image_for_any_batch():
    net = nn.Sequential(made(CASES[9]))
    fold_batch_norms(net)
    program = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    for x in (X, X[:2], torch.cat([X, X])):
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class Refused:
    name: str
    call: Callable[[], object]
    message: str


@pytest.mark.parametrize(
    "refused",
    [
        Refused(
            "a name", lambda: UniformGlobalLayer(4, coefficients="image"), "'image-affine', 'image-linear'"
        ),
        Refused("negative", lambda: UniformGlobalLayer(4, diffusivity=-1.0), "diffusivity=-1.0 must be"),
        Refused("channels", lambda: UniformGlobalLayer(5)(X.float()), r"must be \(N, 5, H, W\)"),
    ],
    ids=lambda r: r.name,
)
def test_what_does_not_fit_is_refused(refused):
    with pytest.raises(UserError, match=refused.message):
        refused.call()
