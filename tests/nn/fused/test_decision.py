"""Which way a layer takes: anything but the plain module runs module by module, with that result."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from globalcnn import PDE, GlobalLayer, UserError
from globalcnn.errors import SlowPathWarning
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.nn.fused.decision import Decision, Way, warn_once
from globalcnn.ops import BACKENDS, use_backend

ABSENT = BACKENDS["native"].unavailable()
needs_native = pytest.mark.skipif(ABSENT is not None, reason=f"native kernels: {ABSENT}")
C = 4


def lively(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with weights and statistics that matter."""
    torch.manual_seed(seed)
    for m in layer.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight, m.running_var):
                if t is not None:
                    nn.init.uniform_(t, 0.5, 1.5)
            for t in (m.bias, m.running_mean):
                if t is not None:
                    nn.init.uniform_(t, -0.3, 0.3)
    return layer


def make(training: bool, **settings: Any) -> GlobalLayer:
    return lively(GlobalLayer(C, PDE(steps=2), **settings)).train(training)


class TwiceTheVelocity(GlobalLayer):
    def fields(self, h, f):
        c = super().fields(h, f)
        return replace(c, u=2 * c.u)


class NoEvolution(GlobalLayer):
    def _solve(self, h, f, c, pde):
        return h + c.u


class Negative(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class LeakyNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Shifted(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


def replaced_class(layer, kind):
    layer.__class__ = kind


def subclass_of_conv(layer):
    old = layer.velocity_x.net
    layer.velocity_x.net = Negative(C, C, 3, padding=1, groups=C)
    layer.velocity_x.net.load_state_dict(old.state_dict())


def subclass_of_norm(layer):
    new = LeakyNorm(C, eps=layer.diffusion_x.norm.eps)
    new.load_state_dict(layer.diffusion_x.norm.state_dict())
    layer.diffusion_x.norm = new.train(layer.training)


def forward_on_instance(layer):
    part = layer.velocity_y.net
    old = part.forward
    part.forward = lambda x: 3 * old(x)


def forward_of_coefficient(layer):
    old = layer.velocity_y.forward
    layer.velocity_y.forward = lambda x: old(x) + 1


def inner_method_on_instance(layer):
    part = layer.velocity_y.net
    old = part._conv_forward
    part._conv_forward = lambda *given: 2 * old(*given)


def method_of_layer_on_instance(layer):
    old = layer.fields
    layer.fields = lambda h, f: replace(old(h, f), v=old(h, f).v * 2)


def spectral(layer):
    parametrizations.spectral_norm(layer.velocity_x.net)
    for p in layer.velocity_x.net.parametrizations.weight:
        p.eval()  # its power iteration would continue with every forward


def unusual_stride(layer):
    layer.velocity_x.net.padding_mode = "circular"
    layer.velocity_x.net._reversed_padding_repeated_twice = [1, 1, 1, 1]


def weight_as_buffer(layer):
    conv = layer.velocity_x.net
    weight = conv.weight.data
    del conv.weight
    conv.register_buffer("weight", 2 * weight)


def norm_weight_as_buffer(layer):
    weight = layer.norm.weight.data
    del layer.norm.weight
    layer.norm.register_buffer("weight", weight + 1)


@dataclass(frozen=True)
class Change:
    """A way in which a layer is not the plain one; words that explain says of it."""

    change: Any
    words: str
    same: bool = False  # whether the output is still that of the plain layer


def hook(kind):
    def change(layer):
        part = layer.diffusion_y.norm
        if kind == "forward":
            part.register_forward_hook(lambda m, given, out: out + 1)
        elif kind == "pre":
            part.register_forward_pre_hook(lambda m, given: (given[0] * 2,))
        elif kind == "backward":
            part.register_full_backward_hook(lambda m, given, out: None)
        else:
            part.register_full_backward_pre_hook(lambda m, out: None)

    return change


CHANGES = {
    "subclass, fields": Change(lambda m: replaced_class(m, TwiceTheVelocity), "TwiceTheVelocity"),
    "subclass, _solve": Change(lambda m: replaced_class(m, NoEvolution), "NoEvolution"),
    "subclass of Conv2d": Change(subclass_of_conv, "velocity_x.net is not a depthwise convolution"),
    "subclass of BatchNorm2d": Change(subclass_of_norm, "LeakyNorm"),
    "subclass of ReLU": Change(lambda m: setattr(m, "coefficient_act", Shifted()), "activation"),
    "another activation": Change(lambda m: setattr(m, "act", nn.Tanh()), "Tanh"),
    "forward on a part": Change(forward_on_instance, "velocity_y.net was replaced"),
    "forward on a coefficient": Change(forward_of_coefficient, "velocity_y was replaced"),
    "_conv_forward on a part": Change(inner_method_on_instance, "velocity_y.net was replaced"),
    "fields on the layer": Change(method_of_layer_on_instance, "replaced on the layer"),
    "forward hook": Change(hook("forward"), "a hook watches diffusion_y.norm"),
    "forward pre-hook": Change(hook("pre"), "a hook watches diffusion_y.norm"),
    "backward hook": Change(hook("backward"), "a hook watches diffusion_y.norm", same=True),
    "backward pre-hook": Change(hook("backward pre"), "a hook watches diffusion_y.norm", same=True),
    "parametrised": Change(
        lambda m: parametrize.register_parametrization(m.velocity_x.net, "weight", Doubled()),
        "velocity_x.net",
    ),
    "weight norm": Change(
        lambda m: parametrizations.weight_norm(m.velocity_x.net), "velocity_x.net", same=True
    ),
    "old weight norm": Change(lambda m: nn.utils.weight_norm(m.velocity_x.net), "velocity_x.net", same=True),
    "spectral norm": Change(spectral, "velocity_x.net"),
    "parametrised layer": Change(
        lambda m: parametrize.register_parametrization(m.norm, "bias", Doubled()), "Parametrized"
    ),
    "group norm": Change(lambda m: setattr(m, "norm", nn.GroupNorm(2, C)), "GroupNorm"),
    "padding": Change(unusual_stride, "velocity_x.net is not a depthwise convolution"),
    "weight as a buffer": Change(weight_as_buffer, "a tensor of velocity_x.net is not the parameter"),
    "norm weight as a buffer": Change(norm_weight_as_buffer, "a tensor of norm is not the parameter"),
    "limits of ReLU6": Change(lambda m: setattr(m.act, "max_val", 0.5), "limits of its ReLU6"),
}


@needs_native
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_what_is_not_the_plain_module_runs_module_by_module(name, training):
    case = CHANGES[name]
    layer = make(training, act=nn.ReLU6 if "ReLU6" in name else nn.ReLU)
    plain = copy.deepcopy(layer)
    x = torch.randn(2, C, 5, 6)
    case.change(layer)
    assert case.words in layer.explain(x)
    assert "module by module" in layer.explain(x)
    torch.manual_seed(0)
    with use_backend("eager"), torch.set_grad_enabled(training):
        expected = layer(x)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(plain(x), expected, rtol=1e-3, atol=1e-4) == case.same


@needs_native
def test_a_backward_hook_on_a_part_is_called():
    layer, x, seen = make(True), torch.randn(2, C, 5, 5, requires_grad=True), []
    layer.velocity_x.net.register_full_backward_hook(lambda *_: seen.append(1))
    layer(x).sum().backward()
    assert seen == [1]


@needs_native
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_hook_on_all_modules_sees_the_parts(training):
    layer, seen = make(training), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        with torch.no_grad():
            layer(torch.randn(2, C, 5, 5))
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 4


@needs_native
@pytest.mark.parametrize("owner", [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, GlobalLayer], ids=lambda o: o.__name__)
def test_a_method_replaced_on_a_class_is_called(owner, monkeypatch):
    layer, calls = make(False), []
    name = "_finish" if owner is GlobalLayer else "forward"
    old = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda self, *given: calls.append(1) or old(self, *given))
    with torch.no_grad():
        layer(torch.randn(2, C, 5, 5))
    assert calls


class Counting(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


class CountingDispatch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@needs_native
@pytest.mark.parametrize("kind", [Counting, CountingDispatch])
def test_modes_see_the_convolutions(kind):
    layer, mode = make(False), kind()
    with torch.no_grad(), mode:
        layer(torch.randn(2, C, 5, 5))
    assert sum("conv2d" in name or "convolution" in name for name in mode.seen) >= 4


@needs_native
def test_a_default_device_is_no_reason():
    with torch.no_grad(), torch.device("cpu"):
        assert "fused inference" in make(False).explain(torch.randn(2, C, 5, 5))


class Tagged(torch.Tensor):
    """A tensor subclass: what it touches becomes one."""


@needs_native
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_tensor_subclasses(training):
    layer, x = make(training), torch.randn(2, C, 5, 5)
    with torch.no_grad():
        out = copy.deepcopy(layer)(x.as_subclass(Tagged))
        assert "Tagged" in layer.explain(x.as_subclass(Tagged))
        torch.testing.assert_close(out.as_subclass(torch.Tensor), layer(x), rtol=1e-4, atol=1e-5)
    assert type(out) is Tagged


WRITES = {
    "p.data.mul_": lambda m: [p.data.mul_(1.1) for p in m.parameters()],
    "p.data assigned": lambda m: [setattr(p, "data", p.data * 1.1) for p in m.parameters()],
    "through numpy": lambda m: m.velocity_x.net.weight.detach().numpy().__imul__(2),
    "one element": lambda m: m.velocity_x.net.weight.data.view(-1)[4:5].add_(1.0),
    "under inference mode": lambda m: inference_write(m),
    "running statistics in place": lambda m: m.norm.running_mean.data.add_(0.5),
    "set_": lambda m: m.norm.running_var.set_(torch.full((C,), 0.3)),
    "load_state_dict": lambda m: m.load_state_dict(make(False, norm_eps=1.0).double().float().state_dict()),
    "load_state_dict, assigned": lambda m: m.load_state_dict(
        lively(GlobalLayer(C), seed=3).state_dict(), assign=True
    ),
    "a new parameter": lambda m: setattr(m.norm, "weight", nn.Parameter(torch.full((C,), 0.3))),
    "a new module": lambda m: setattr(m.velocity_y, "net", nn.Conv2d(C, C, 3, padding=1, groups=C)),
    "eps of a coefficient": lambda m: setattr(m.velocity_x.norm, "eps", 0.01),
    "eps of the output": lambda m: setattr(m.norm, "eps", 2.0),
    "the equation": lambda m: setattr(m, "pde", PDE(steps=4, dt=0.4)),
    "the source": lambda m: setattr(m, "source", False),
    "a norm without weights": lambda m: setattr(
        m, "norm", lively(nn.Sequential(nn.BatchNorm2d(C, affine=False)), 5)[0].eval()
    ),
    "a bias gone": lambda m: m.velocity_x.net.register_parameter("bias", None) or nudge(m),
}


def nudge(layer):
    layer.velocity_x.net.weight.data.mul_(1.5)


def inference_write(layer):
    with torch.inference_mode():
        for p in layer.parameters():
            p.mul_(1.2)


@needs_native
@pytest.mark.parametrize("name", WRITES)
def test_every_write_reaches_the_next_call(name):
    layer, x = make(False), torch.randn(2, C, 6, 5)
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        WRITES[name](layer)
        after = layer(x)
        with use_backend("eager"):
            expected = layer(x)
    assert not torch.allclose(after, before, atol=1e-5), "the write changed nothing: no test"
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert "fused inference" in layer.eval().explain(x) or torch.is_grad_enabled()


@needs_native
def test_a_part_put_into_training_mode():
    layer, x = make(False), torch.randn(2, C, 6, 5)
    with torch.no_grad():
        layer(x)
        layer.diffusion_x.norm.train()
        assert "training mode" in layer.explain(x)
        twin = copy.deepcopy(layer)
        with use_backend("eager"):
            expected = twin(x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.diffusion_x.norm.running_mean, twin.diffusion_x.norm.running_mean)


@needs_native
def test_functional_call_and_inference_tensors():
    layer, x = make(False), torch.randn(2, C, 6, 5)
    others = {k: (v * 1.3 if v.is_floating_point() else v) for k, v in layer.state_dict().items()}
    with torch.no_grad():
        out = torch.func.functional_call(layer, others, (x,))
        layer.load_state_dict(others)
        torch.testing.assert_close(out, layer(x))
    with torch.inference_mode():
        made = make(False)
        first = made(x)
        made.velocity_x.norm.weight.mul_(3)
        assert not torch.equal(made(x), first)


@dataclass(frozen=True)
class NormCase:
    affine: bool = True
    momentum: float | None = 0.1
    track: bool = True
    only_first: bool = False


NORMS = {
    "no weights": NormCase(affine=False),
    "cumulative average": NormCase(momentum=None),
    "no statistics": NormCase(track=False),
    "nothing": NormCase(affine=False, momentum=None, track=False),
    "no weights in one": NormCase(affine=False, only_first=True),
    "cumulative average in one": NormCase(momentum=None, only_first=True),
    "no statistics in one": NormCase(track=False, only_first=True),
    "momentum 0": NormCase(momentum=0.0),
    "momentum 1, a whole number": NormCase(momentum=1),
}


@needs_native
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_every_kind_train_and_infer(name, bias):
    case = NORMS[name]
    layer = GlobalLayer(C, PDE(steps=2), bias=bias)
    for part in ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y")[: 1 if case.only_first else 4]:
        layer.get_submodule(part).norm = nn.BatchNorm2d(
            C, eps=4.0, affine=case.affine, momentum=case.momentum, track_running_stats=case.track
        )
    layer = lively(layer)
    twin, x = copy.deepcopy(layer), torch.randn(3, C, 6, 5)
    for _ in range(3):
        out = layer(x)
        with use_backend("eager"):
            expected = twin(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            dict(layer.named_buffers()), dict(twin.named_buffers()), rtol=1e-4, atol=1e-5
        )
    out.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.eval(), twin.eval()
    with torch.no_grad():
        out = layer(x)
        with use_backend("eager"):
            torch.testing.assert_close(out, twin(x), rtol=1e-4, atol=1e-5)


@needs_native
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype, training):
    layer, x = make(training).to(dtype), torch.randn(2, C, 6, 5, dtype=dtype)
    with torch.set_grad_enabled(training):
        out = layer(x)
        words = layer.explain(x)
    assert out.dtype == dtype
    assert ("float16" in words and "module by module" in words) == (dtype == torch.float16)
    exact = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)


@needs_native
def test_weights_of_another_dtype_than_the_input():
    layer, x = make(False), torch.randn(2, C, 6, 5)
    with torch.no_grad():
        layer.velocity_x.double()
        assert "differs in shape, dtype" in layer.explain(x)
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            layer(x)


def test_the_meta_device():
    layer = GlobalLayer(C).to("meta")
    assert "meta" in layer.explain(torch.empty(2, C, 6, 5, device="meta"))
    assert layer(torch.empty(2, C, 6, 5, device="meta")).shape == (2, C, 6, 5)


@pytest.mark.parametrize("what", ["sparse", "complex", "whole numbers", "not a tensor", "an empty map"])
@pytest.mark.parametrize("kind", ["layer", "frozen"])
def test_inputs_that_are_refused_by_name(what, kind):
    x = torch.randn(2, C, 6, 5)
    layer = GlobalLayer(C).eval()
    given, words = {
        "sparse": (x.to_sparse(), "it must be dense"),
        "complex": (x.to(torch.complex64), "complex64"),
        "whole numbers": (x.long(), "int64"),
        "not a tensor": ([1.0], "is a list; it must be a tensor"),
        "an empty map": (x[:, :, :0], "H and W must be >= 1"),
    }[what]
    module = layer if kind == "layer" else FusedGlobalLayer(layer)
    for call in (module, layer.explain):
        with pytest.raises(UserError, match=words):
            call(given)


@needs_native
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(
    "shape",
    [(0, C, 5, 5), (1, C, 1, 1), (2, C, 1, 1), (1, C, 1, 7), (2, C, 7, 1)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed", "strided", "expanded"])
def test_shapes_and_layouts(shape, layout, training):
    layer = make(training)
    N, _, H, W = shape
    x = torch.randn(shape)
    if layout == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = torch.randn(N, C, W, H).transpose(2, 3)
    elif layout == "strided":
        x = torch.randn(N, 2 * C, H, 2 * W)[:, ::2, :, 1::2]
    elif layout == "expanded":
        x = torch.randn(1, C, 1, 1).expand(shape)
    twin = copy.deepcopy(layer)
    with torch.set_grad_enabled(training):
        if training and N * H * W == 1:
            for kind in (twin, layer):
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    kind(x)
            return
        with use_backend("eager"):
            expected = twin(x)
        out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()), rtol=1e-3, atol=1e-4)


def test_explain_leaves_everything_as_it_was():
    init = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Dropout())
    layer = GlobalLayer(C, init=init)
    layer.init[1].eval()
    before = copy.deepcopy(layer.state_dict())
    layer.explain(torch.randn(2, C, 6, 5))
    assert layer.training
    assert not layer.init[1].training
    assert layer.init[2].training
    torch.testing.assert_close(layer.state_dict(), before)


@needs_native
def test_explain_says_what_a_forward_does():
    layer, x = make(False, init=nn.Conv2d(C, C, 1)), torch.randn(2, C, 6, 5)
    assert "with gradients" in layer.explain(x)
    with torch.no_grad():
        assert "fused inference" in layer.explain(x)
    for p in layer.parameters():
        p.requires_grad_(False)
    assert "fused inference" in layer.explain(x)
    assert "with gradients" in layer.explain(x.requires_grad_())
    layer.train()
    assert "fused training" in layer.explain(x)
    with use_backend("eager"):
        assert "eager was chosen" in layer.explain(x)


def test_what_a_command_mends_is_said_once():
    decision = Decision(Way.MODULES, "native kernels: not built", remedy="globalcnn build --test")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_once(decision)
        warn_once(decision)
        warn_once(Decision(Way.MODULES, "its activation Tanh has no fused form"))
    assert [w.category for w in said] == [SlowPathWarning]
    assert "Run `globalcnn build --test`" in str(said[0].message)
    assert str(decision).endswith("`globalcnn build --test` fixes this")
