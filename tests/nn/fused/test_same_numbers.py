"""A Global layer by fused operators and by plain modules: the same outputs, gradients and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from globalcnn import PDE, GlobalLayer
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import BACKENDS, use_backend

ABSENT = BACKENDS["native"].unavailable()
needs_native = pytest.mark.skipif(ABSENT is not None, reason=f"native kernels: {ABSENT}")

SETTINGS = {
    "published": dict,
    "no bias": lambda: {"bias": False},
    "constant diffusion": lambda: {"diffusivity": (1.0, 0.5)},
    "shared product": lambda: {"shared_product": True, "norm_eps": 1e-2},
    "init, velocity from f": lambda: {"velocity_from": "f", "init": nn.Conv2d(6, 6, 3, padding=1)},
    "init, start from h": lambda: {"start_from": "h", "init": nn.Conv2d(6, 6, 3, padding=1)},
    "init of another shape": lambda: {"init": nn.Conv2d(6, 6, 3, stride=2, padding=1)},
    "no source, residual": lambda: {"source": False, "residual": True},
    "kernel 5, SiLU": lambda: {"kernel_size": 5, "act": nn.SiLU},
    "hard swish": lambda: {"act": nn.Hardswish},
    "ReLU6, far": lambda: {"act": nn.ReLU6, "pde": PDE(steps=3, spacing=(2, 3), boundary="neumann")},
    "five steps, zero outside": lambda: {"pde": PDE(steps=5, boundary="dirichlet")},
}


def make(setting, seed=0):
    torch.manual_seed(seed)
    settings = SETTINGS[setting]()
    layer = GlobalLayer(6, settings.pop("pde", None), **settings)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return layer


def close(found, expected, name, tolerance=1e-4):
    scale = expected.abs().max().item() + 1e-3
    assert (found - expected).abs().max().item() <= tolerance * scale, name


def plainly(call):
    """What `call()` gives module by module in plain PyTorch."""
    with use_backend("eager"):
        return call()


@needs_native
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_is_the_same(setting, layout):
    a = make(setting)
    b = copy.deepcopy(a)
    x = torch.randn(3, 6, 7, 9).contiguous(memory_format=layout)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    assert ("fused training" in a.explain(x)) == (setting != "init, velocity from f")
    outputs = [a(inputs[0]), plainly(lambda: b(inputs[1]))]
    weight = torch.randn(outputs[0].shape)
    for out in outputs:
        (out * weight).sum().backward()
    close(*outputs, "output")
    close(inputs[0].grad, inputs[1].grad, "gradient of the input")
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        if name.endswith("net.bias"):  # zero but for rounding
            assert p.grad.abs().max() < 1e-3 > q.grad.abs().max(), name
        else:
            close(p.grad, q.grad, name, 1e-3)
    for (name, p), q in zip(a.named_buffers(), b.buffers(), strict=True):
        close(p.double(), q.double(), name)


@needs_native
@pytest.mark.parametrize("setting", SETTINGS)
def test_inference_is_the_same(setting):
    layer, x = make(setting).eval(), torch.randn(2, 6, 7, 9)
    with torch.no_grad():
        expected = plainly(lambda: layer(x))
        assert "fused inference" in layer.explain(x)
        close(layer(x), expected, "layer")
        alone = FusedGlobalLayer.from_layer(layer)
        close(alone(x), expected, "fused layer")
        close(alone.to(memory_format=torch.channels_last)(x), expected, "fused layer in channels-last")
        close(alone.double()(x.double()).float(), expected, "fused layer in float64")


@needs_native
def test_gradients_in_eval_mode_are_there():
    layer, x = make("published").eval(), torch.randn(2, 6, 5, 5)
    layer(x).sum().backward()
    assert layer.velocity_x.net.weight.grad is not None


@needs_native
def test_compiled_in_one_graph_in_training():
    layer, x = make("published"), torch.randn(2, 6, 5, 5)
    other = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    plainly(lambda: other(x).square().sum().backward())
    close(layer.velocity_x.net.weight.grad, other.velocity_x.net.weight.grad, "gradient", 1e-3)
    close(layer.velocity_x.norm.running_mean, other.velocity_x.norm.running_mean, "statistic")


def test_without_fast_kernels_the_fused_layer_computes_the_same():
    layer, x = make("published").eval(), torch.randn(2, 6, 7, 9)
    alone = FusedGlobalLayer.from_layer(layer)
    with torch.no_grad():
        close(plainly(lambda: alone(x)), plainly(lambda: layer(x)), "in plain PyTorch")
