"""`GlobalLayer` against `DescribedLayer`, the layer written out, for every option; its conventions."""

from __future__ import annotations

import copy
import io
import pickle
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalcnn import PDE, GlobalLayer, UserError
from globalcnn.nn import NETWORKS
from tests.oracles.described_layer import DescribedLayer

C = 4


class OneToMany(nn.Module):
    """An init block that changes channels and stride."""

    def __init__(self, c_in=3, c_out=C):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, f):
        return self.conv(f)


class OfTwo(nn.Module):
    """An init block of two inputs, the earlier one first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, before, f):
        return self.conv(f) - 2 * before


def randomised(layer, seed=0):
    """Every weight and statistic of the layer at random, in float64: nothing is 0 or 1 by luck."""
    g = torch.Generator().manual_seed(seed)
    layer.double()
    with torch.no_grad():
        for name, A in layer.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            positive = name.endswith("running_var") or (A.ndim == 1 and name.endswith("weight"))
            values = torch.rand(A.shape, generator=g, dtype=A.dtype) + 0.5 if positive else None
            A.copy_(values if positive else 0.5 * torch.randn(A.shape, generator=g, dtype=A.dtype))
    return layer


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LONG = PDE(steps=4, dt=0.1, spacing=(2, 1))
OPTIONS = {  # about: (arguments of the layer, arguments of DescribedLayer, arguments of its call)
    "published": ({}, {}, {}),
    "no bias": ({"bias": False}, {}, {}),
    "several steps": ({"pde": LONG}, {}, {"pde": LONG}),
    "no steps": ({"pde": PDE(steps=0)}, {}, {"pde": PDE(steps=0)}),
    "constant D": ({"diffusivity": 0.7}, {}, {"D": (0.7, 0.7)}),
    "constant Dx, Dy": ({"diffusivity": (0.2, 2)}, {}, {"D": (0.2, 2.0)}),
    "shared product": ({"shared_product": True}, {}, {"shared": True}),
    "shared product, constant D": (
        {"shared_product": True, "diffusivity": 1.0, "pde": LONG},
        {},
        {"shared": True, "D": (1.0, 1.0), "pde": LONG},
    ),
    "no source": ({"source": False}, {}, {"source": False}),
    "start from h": ({"start_from": "h"}, {}, {"start": "h"}),
    "velocity from f": ({"velocity_from": "f"}, {}, {"velocity_from": "f"}),
    "residual": ({"residual": True}, {}, {"residual": True}),
    "eps of the ImageNet networks": ({"norm_eps": 1e-5}, {"eps": 1e-5}, {}),
    "kernel 5": ({"kernel_size": 5}, {}, {}),
    "kernel 1": ({"kernel_size": 1}, {}, {}),
    "SiLU": ({"act": nn.SiLU}, {"act": F.silu}, {}),
    "SiLU, shared product": ({"act": nn.SiLU, "shared_product": True}, {"act": F.silu}, {"shared": True}),
    "ReLU6 in place": (
        {"act": partial(nn.ReLU6, inplace=True), "shared_product": True},
        {"act": F.relu6},
        {"shared": True},
    ),
    **{f"coefficients {name}": ({"coefficients": name}, {"coefficients": name}, {}) for name in NETWORKS},
    "all at once": (
        {
            "pde": LONG,
            "coefficients": "bottleneck",
            "kernel_size": 5,
            "shared_product": True,
            "velocity_from": "f",
            "start_from": "h",
            "residual": True,
            "norm_eps": 0.3,
            "act": nn.SiLU,
        },
        {"coefficients": "bottleneck", "act": F.silu, "eps": 0.3},
        {"pde": LONG, "shared": True, "velocity_from": "f", "start": "h", "residual": True},
    ),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("init", ["identity", "keeps the shape", "changes the shape", "of two inputs"])
@pytest.mark.parametrize("about", OPTIONS)
def test_the_layer_is_what_its_description_says(about, init, training):
    settings, plainly, call = OPTIONS[about]
    inputs = [image(2, C, 6, 5)]
    block = None
    if init == "keeps the shape":
        block = nn.Conv2d(C, C, 3, padding=1)
    elif init == "changes the shape":
        inputs, block = [image(2, 3, 6, 5)], OneToMany()
    elif init == "of two inputs":
        inputs, block = [image(2, C, 6, 5), image(2, C, 6, 5, seed=2)], OfTwo()
    layer = randomised(GlobalLayer(C, **{**settings, "init": block})).train(training)
    f, *before = inputs
    h = f if block is None else layer.init(*before, f)
    plain = DescribedLayer(layer, **{"eps": float(C), "training": training, **plainly})
    expected = plain(f, h, **{"pde": PDE(), **call})
    torch.testing.assert_close(layer(f, *before), expected, rtol=1e-9, atol=1e-9)


def test_every_option_changes_the_outcome():
    """The test of the test: were an option ignored, the layer without it would give the same numbers."""
    f, seen = image(2, C, 6, 5), {}
    for about, (settings, _, _) in OPTIONS.items():
        init = nn.Conv2d(C, C, 3, padding=1)
        settings = {"pde": PDE(steps=2), **settings}
        seen[about] = randomised(GlobalLayer(C, **{**settings, "init": init})).eval()(f)
    same = {"coefficients depthwise"}  # the default, named
    for about, out in seen.items():
        if about not in same | {"published"}:
            assert not torch.allclose(out, seen["published"], rtol=1e-3, atol=1e-3), about
    assert torch.equal(seen["coefficients depthwise"], seen["published"])


@pytest.mark.parametrize("boundary", ["neumann", "dirichlet"])
def test_other_boundaries_differ_at_the_edge_alone(boundary):
    f = image(1, C, 7, 8)
    periodic = randomised(GlobalLayer(C)).eval()
    walled = GlobalLayer(C, PDE(boundary=boundary)).double().eval()
    walled.load_state_dict(periodic.state_dict())
    difference = (walled(f) - periodic(f)).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-12
    assert difference[..., 0, :].max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "per_channel"),
    [
        ({}, 50),
        ({"bias": False}, 46),
        ({"diffusivity": 1.0}, 26),
        ({"diffusivity": (1.0, 2.0), "bias": False}, 24),
        ({"shared_product": True}, 50),
        ({"coefficients": "identity"}, 10),
        ({"kernel_size": 5, "bias": False, "diffusivity": 1.0}, 2 * 25 + 2 * 2 + 2),
    ],
)
def test_parameters_per_channel(settings, per_channel):
    for channels in (1, 16, 33):
        layer = GlobalLayer(channels, **settings)
        assert sum(p.numel() for p in layer.parameters()) == per_channel * channels


def test_parameters_of_dense_coefficient_networks():
    def count(name):
        layer = GlobalLayer(C, coefficients=name, bias=False, diffusivity=1.0)
        return sum(p.numel() for p in layer.velocity_x.net.parameters())

    assert count("full") == 9 * C * C
    assert count("pointwise") == C * C
    assert count("basic") == 2 * (9 * C * C + 2 * C)
    assert count("bottleneck") == (1 + 9 + 1) * C * C + 3 * 2 * C


@pytest.mark.parametrize("K", [1, 2, 5])
def test_multiplies_of_the_solve(K):
    """28 + 17 (K - 1) per element, 14 + 9 (K - 1) with constant diffusion."""
    assert GlobalLayer(C, PDE(steps=K)).pde_multiplies(6, 5) == (28 + 17 * (K - 1)) * C * 6 * 5
    assert GlobalLayer(C, PDE(steps=K), diffusivity=1.0).pde_multiplies(6, 5) == (14 + 9 * (K - 1)) * C * 30
    assert GlobalLayer(C, PDE(steps=0)).pde_multiplies(6, 5) == 0


def test_a_network_of_ones_own():
    def average(channels, kernel_size, bias):
        return nn.AvgPool2d(kernel_size, stride=1, padding=kernel_size // 2)

    layer = GlobalLayer(C, coefficients=average)
    assert isinstance(layer.diffusion_y.net, nn.AvgPool2d)
    assert layer(torch.randn(1, C, 6, 6)).shape == (1, C, 6, 6)


def test_coefficients_start_near_zero():
    """Conv weights N(0, 2 / (C k k)), not divided by the groups; biases 0."""
    layer = GlobalLayer(256)
    for name in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y"):
        conv = layer.get_submodule(name).net
        assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.1)
        assert conv.bias.abs().max() == 0


def test_norm_eps_is_the_number_of_channels_unless_given():
    names = ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y")
    assert {GlobalLayer(7).get_submodule(n).norm.eps for n in names} == {7.0}
    assert {GlobalLayer(7, norm_eps=1e-5).get_submodule(n).norm.eps for n in names} == {1e-5}
    assert GlobalLayer(7).norm.eps == 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
def test_any_size_and_an_empty_batch(size):
    layer = GlobalLayer(C, PDE(steps=2)).eval()
    assert layer(torch.randn(2, C, *size)).shape == (2, C, *size)
    assert layer(torch.randn(0, C, *size)).shape == (0, C, *size)


def test_every_parameter_learns():
    layer = randomised(GlobalLayer(C, PDE(steps=2), init=nn.Conv2d(C, C, 1)))
    layer(image(2, C, 6, 5)).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        if not name.endswith("net.bias"):  # the norm cancels it
            assert p.grad.abs().max() > 0, name


def test_the_levels_of_an_evolution():
    layer = randomised(GlobalLayer(C, PDE(steps=3), init=nn.Conv2d(C, C, 1), residual=True)).eval()
    f = image(2, C, 6, 5)
    seen = layer.evolution(f)
    assert len(seen.levels) == 4
    assert torch.equal(seen.levels[0], layer.init(f))
    assert torch.equal(seen.source, f)
    assert torch.equal(seen.output, layer(f))
    for k in (1, 2, 3):
        shorter = GlobalLayer(C, PDE(steps=k), init=nn.Conv2d(C, C, 1), residual=True).double().eval()
        shorter.load_state_dict(layer.state_dict())
        assert torch.equal(seen.levels[k], shorter.evolution(f).levels[-1])
    torch.testing.assert_close(seen.fields, layer.fields(layer.init(f), f))


def flags(module):
    return {name: m.training for name, m in module.named_modules()}


@pytest.mark.parametrize("question", ["stability", "evolution"])
@pytest.mark.parametrize("mode", ["training", "eval", "mixed"])
def test_questions_leave_the_layer_as_it_was(question, mode):
    layer = GlobalLayer(C, init=nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Dropout()))
    layer.train(mode != "eval")
    if mode == "mixed":
        layer.init[1].eval()  # a norm frozen on purpose
        layer.velocity_x.eval()
    before = flags(layer), copy.deepcopy(layer.state_dict())
    answers = [getattr(layer, question)(torch.randn(2, C, 6, 5) + 3) for _ in range(2)]
    assert flags(layer) == before[0]
    for name, A in layer.state_dict().items():
        assert torch.equal(A, before[1][name]), name
    assert all(p.grad is None for p in layer.parameters())
    assert len(answers) == 2


def test_a_failing_question_leaves_the_layer_as_it_was():
    layer = GlobalLayer(C)
    layer.norm.eval()
    with pytest.raises(UserError):
        layer.stability(torch.randn(2, C + 1, 6, 5))
    assert layer.training
    assert not layer.norm.training


def test_stability_reports_the_worst_element():
    """With velocity (0, v) from a bias alone and constant D, the ratio is v^2 / 12.5 times that of (u, v)."""
    layer = GlobalLayer(2, diffusivity=1.0, norm_eps=1e-12).eval()
    with torch.no_grad():
        for name in ("velocity_x", "velocity_y"):
            layer.get_submodule(name).net.weight.zero_()
        layer.velocity_x.norm.bias.copy_(torch.tensor([1.0, 3.0]))
        layer.velocity_y.norm.bias.copy_(torch.tensor([1.0, 4.0]))
    seen = layer.stability(torch.randn(2, 2, 5, 5))
    assert seen.ratio == pytest.approx((3**2 + 4**2) / 12.5)
    assert seen.worst_channel == 1
    assert seen.share_over == pytest.approx(0.5)
    assert seen.speed == pytest.approx(5.0)
    assert seen.diffusion == 1.0
    assert not seen.stable
    with torch.no_grad():
        layer.velocity_y.norm.bias.zero_()
        layer.velocity_x.norm.bias.copy_(torch.tensor([1.0, -3.0]))  # ReLU
    seen = layer.stability(torch.randn(2, 2, 5, 5))
    assert (seen.stable, seen.share_over, seen.worst_channel) == (True, 0.0, 0)


def test_learned_diffusion_may_vanish_where_velocity_does_not():
    layer = GlobalLayer(64)
    seen = layer.stability(torch.randn(4, 64, 16, 16))
    assert seen.diffusion == 0.0  # ReLU: where diffusion is zero and velocity is not, the scheme has no limit
    assert GlobalLayer(64, diffusivity=1.0).stability(torch.randn(4, 64, 16, 16)).stable


@pytest.mark.parametrize("shape", [(0, C, 6, 5)])
def test_stability_of_nothing(shape):
    with pytest.raises(
        UserError, match=re.escape("GlobalLayer.stability: the input is empty, shape (0, 4, 6, 5)")
    ):
        GlobalLayer(C).stability(torch.zeros(shape))


@pytest.mark.parametrize("init", [None, "conv"])
@pytest.mark.parametrize("settings", [{}, {"diffusivity": 1.0}, {"velocity_from": "f"}], ids=str)
def test_autocast_to_bfloat16(init, settings):
    block = nn.Conv2d(C, C, 3, padding=1) if init else None
    layer = GlobalLayer(C, PDE(steps=3), init=block, **settings)
    f = torch.randn(2, C, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(f)
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(f)
    torch.testing.assert_close(low.float(), layer(f), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    layer = GlobalLayer(C, PDE(steps=2)).to(dtype)
    assert layer(torch.randn(2, C, 6, 5, dtype=dtype)).dtype == dtype


def test_channels_last():
    layer = randomised(GlobalLayer(C, PDE(steps=2)))
    f = image(2, C, 6, 5)
    expected = layer(f)
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(f.to(memory_format=torch.channels_last)), expected)


def test_copies_and_state_dicts():
    layer = randomised(GlobalLayer(C, PDE(steps=2, boundary="dirichlet"), init=nn.Conv2d(C, C, 1))).eval()
    f = image(2, C, 6, 5)
    expected = layer(f)
    assert torch.equal(copy.deepcopy(layer)(f), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(f), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = GlobalLayer(C, PDE(steps=2, boundary="dirichlet"), init=nn.Conv2d(C, C, 1)).double().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(f), expected)


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    layer = GlobalLayer(C, PDE(steps=2), shared_product=True)
    f = torch.randn(2, C, 6, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(f), layer(f))
    compiled(f).square().sum().backward()
    assert layer.velocity_x.net.weight.grad is not None


def test_exported():
    layer = GlobalLayer(C, PDE(steps=2), init=nn.Conv2d(C, C, 1)).eval()
    f = torch.randn(2, C, 6, 5)
    program = torch.export.export(layer, (f,))
    torch.testing.assert_close(program.module()(f), layer(f))


def test_what_it_prints_as():
    text = repr(GlobalLayer(C, PDE(steps=3), diffusivity=0.5))
    assert "GlobalLayer(" in text
    assert "PDE(steps=3" in text
    assert "diffusivity=(0.5, 0.5)" in text
    assert "diffusivity=learned" in repr(GlobalLayer(C))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"channels": 0}, ValueError, "GlobalLayer: channels=0 must be a whole number >= 1"),
        ({"channels": 2.0}, ValueError, "GlobalLayer: channels=2.0 must be a whole number >= 1"),
        ({"channels": True}, ValueError, "GlobalLayer: channels=True must be a whole number >= 1"),
        ({"pde": 3}, TypeError, "GlobalLayer: pde=3 must be a globalcnn.PDE or None"),
        ({"kernel_size": 2}, ValueError, "kernel_size=2 must be odd and >= 1, so that H and W stay"),
        ({"kernel_size": -1}, ValueError, "kernel_size=-1 must be odd and >= 1"),
        ({"kernel_size": (3, 3)}, TypeError, "kernel_size=(3, 3) must be an odd whole number, such as 3"),
        (
            {"coefficients": "depth"},
            ValueError,
            "unknown coefficient network 'depth'; did you mean 'depthwise'? Known: basic, bottleneck",
        ),
        (
            {"coefficients": 3},
            TypeError,
            "coefficients=3 must be one of depthwise, full, pointwise, identity",
        ),
        (
            {"diffusivity": -1.0},
            ValueError,
            "diffusivity=-1.0 must be a number >= 0, a pair, or None",
        ),
        ({"diffusivity": (1.0,)}, ValueError, "diffusivity=(1.0,) must be a number >= 0"),
        ({"diffusivity": float("nan")}, ValueError, "diffusivity=nan must be a number >= 0"),
        ({"diffusivity": "1"}, ValueError, "diffusivity='1' must be a number >= 0"),
        ({"diffusivity": True}, ValueError, "diffusivity=True must be a number >= 0"),
        ({"velocity_from": "g"}, ValueError, "GlobalLayer: velocity_from='g' must be one of 'h', 'f'"),
        ({"start_from": "0"}, ValueError, "GlobalLayer: start_from='0' must be one of 'f', 'h'"),
        (
            {"norm_eps": 0.0},
            ValueError,
            "GlobalLayer: norm_eps=0.0 must be a finite number > 0, or None for C",
        ),
        ({"norm_eps": True}, ValueError, "GlobalLayer: norm_eps=True must be a finite number > 0"),
        ({"norm_eps": "C"}, ValueError, "GlobalLayer: norm_eps='C' must be a finite number > 0"),
        ({"init": F.relu}, TypeError, "must be a module or None for identity"),
        ({"act": nn.ReLU()}, TypeError, "act=ReLU() must be a class of modules, such as torch.nn.ReLU"),
        ({"act": "relu"}, TypeError, "act='relu' must be a class of modules, such as torch.nn.ReLU"),
    ],
)
def test_settings_that_do_not_fit(arguments, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        GlobalLayer(**{"channels": C, **arguments})
    assert isinstance(caught.value, UserError)


def test_inputs_that_do_not_fit():
    layer = GlobalLayer(C)
    shape = "GlobalLayer: its input has shape (2, 5, 6, 5); it must be (N, 4, H, W). Give the layer channels="
    with pytest.raises(UserError, match=re.escape(shape)):
        layer(torch.randn(2, 5, 6, 5))
    with pytest.raises(UserError, match=re.escape("its input has shape (4, 6, 5)")):
        layer(torch.randn(4, 6, 5))
    with pytest.raises(UserError, match=re.escape("its init block's output has shape (2, 7, 3, 3)")):
        GlobalLayer(C, init=OneToMany(3, 7))(torch.randn(2, 3, 6, 5))
    with pytest.raises(UserError, match="got a second input, but there is no init block"):
        layer(torch.randn(2, C, 6, 5), torch.randn(2, C, 6, 5))


def test_a_network_that_changes_the_shape_is_named():
    layer = GlobalLayer(C, coefficients=lambda channels, k, bias: nn.Conv2d(channels, channels, k, stride=2))
    with pytest.raises(UserError, match=re.escape("solve: u has shape (2, 4, 2, 2) but h has (2, 4, 6, 5)")):
        layer(torch.randn(2, C, 6, 5))
