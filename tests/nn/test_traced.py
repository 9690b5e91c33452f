"""Layers and networks under tracers and exporters: they pass, and the graphs give the same numbers."""

from __future__ import annotations

import io
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from globalcnn import PDE, GlobalLayer, UserError, create_model
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops.schemes import DuFortFrankel, Scheme

C = 4
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, before, f):
        return self.conv(f) - 2 * before


LAYERS = {
    "published": partial(GlobalLayer, C),
    "several steps, spacing": partial(GlobalLayer, C, PDE(steps=3, spacing=(2, 1))),
    "Neumann": partial(GlobalLayer, C, PDE(steps=2, boundary="zero-flux")),
    "Dirichlet": partial(GlobalLayer, C, PDE(steps=2, boundary="zero")),
    "constant diffusion, shared product": partial(
        GlobalLayer, C, diffusivity=(1.0, 0.5), shared_product=True
    ),
    "init that changes the shape": lambda: GlobalLayer(C, init=nn.Conv2d(C, C, 3, stride=2, padding=1)),
    "init, residual, SiLU": lambda: GlobalLayer(C, init=nn.Conv2d(C, C, 1), residual=True, act=nn.SiLU),
    "velocity from f, start from h, no source": lambda: GlobalLayer(
        C, init=nn.Conv2d(C, C, 1), velocity_from="f", start_from="h", source=False
    ),
    "dense coefficients": partial(GlobalLayer, C, coefficients="full"),
    "no steps": partial(GlobalLayer, C, PDE(steps=0)),
    "frozen": lambda: FusedGlobalLayer(GlobalLayer(C, PDE(steps=2)).eval()),
}
NETWORKS = ("resnet_global_cifar", "resnet_global_tiny_cifar", "digits_global")


def layer_and_input(name):
    torch.manual_seed(0)
    return LAYERS[name]().eval(), torch.randn(2, C, 9, 8)


def network_and_input(name):
    torch.manual_seed(0)
    shape = (1, 28, 28) if "digits" in name else (3, 32, 32)
    return create_model(name, num_classes=10).eval(), torch.randn(2, *shape)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def traced(module, x):
    with torch.no_grad():
        return torch.jit.trace(module, x)


def fx_alone(module, x):
    return symbolic_trace(module)


def fx_inside(module, x):
    return symbolic_trace(nn.Sequential(module))


def exported(module, x):
    return torch.export.export(module, (x,)).module()


def compiled(module, x):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


WAYS = {
    "torch.jit.trace": traced,
    "torch.fx, root": fx_alone,
    "torch.fx, inside": fx_inside,
    "torch.export": exported,
    "torch.compile": compiled,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, way):
    layer, x = layer_and_input(name)
    if name == "frozen" and way == "torch.fx, root":
        with pytest.raises(UserError, match="FusedGlobalLayer that is the root"):
            WAYS[way](layer, x)
        return
    other = WAYS[way](layer, x)
    with torch.no_grad():
        close(other(x), layer(x))
        if way not in ("torch.export", "torch.compile"):
            y = torch.randn(3, C, 7, 11)
            close(other(y), layer(y))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, way):
    net, x = network_and_input(name)
    other = WAYS[way](net, x)
    with torch.no_grad():
        close(other(x), net(x))


@pytest.mark.parametrize("way", ["torch.fx, root", "torch.fx, inside"])
def test_a_traced_layer_still_trains(way):
    layer, x = layer_and_input("init, residual, SiLU")
    graph, twin = WAYS[way](layer.train(), x), layer_and_input("init, residual, SiLU")[0].train()
    for module in (graph, twin):
        module(x).square().sum().backward()
    expected = twin.velocity_x.net.weight.grad
    close(layer.velocity_x.net.weight.grad, expected)
    close(layer.norm.running_mean, twin.norm.running_mean)


def test_two_inputs_under_fx():
    layer = GlobalLayer(C, init=OfTwo()).eval()
    x, before = torch.randn(2, C, 5, 5), torch.randn(2, C, 5, 5)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, f, before):
            return self.layer(f, before)

    with torch.no_grad():
        close(symbolic_trace(Outer())(x, before), layer(x, before))
        close(symbolic_trace(layer, concrete_args=None)(x, before), layer(x, before))


class Other(Scheme):
    """Another scheme than the kernels', by the same arithmetic."""

    name, order_in_time, order_in_space, citation = "other", 2, 2, ""
    coefficients = DuFortFrankel.coefficients
    step = DuFortFrankel.step
    stability_ratio = DuFortFrankel.stability_ratio
    multiplies_per_element = DuFortFrankel.multiplies_per_element


def test_another_scheme_under_fx():
    layer, x = GlobalLayer(C, PDE(scheme=Other())).eval(), torch.randn(2, C, 5, 5)
    with torch.no_grad():
        close(fx_inside(layer, x)(x), layer(x))
    with pytest.raises(UserError, match=r"torch.fx cannot hold the scheme Other\(\) in a graph"):
        fx_alone(layer, x)


def test_feature_extractor():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net, x = network_and_input("resnet_global_cifar")
    _, eval_nodes = extraction.get_graph_node_names(net)
    node = next(n for n in reversed(eval_nodes) if isinstance(layer_at(net, n), GlobalLayer))
    extractor = extraction.create_feature_extractor(net, return_nodes={node: "map"})
    seen = []
    layer_at(net, node).register_forward_hook(lambda m, given, out: seen.append(out))
    with torch.no_grad():
        net(x)
        close(extractor.eval()(x)["map"], seen[0])
    extractor.train()(x)["map"].sum().backward()


def layer_at(net, name):
    try:
        return net.get_submodule(name)
    except AttributeError:
        return None


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_add_graph_of_tensorboard(training, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    net, x = network_and_input("resnet_global_tiny_cifar")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(net.train(training), x)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["published", "Neumann", "init that changes the shape", "frozen"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "torch.export"])
def test_onnx(name, dynamo):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, x = layer_and_input(name)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {0: "batch", 2: "height", 3: "width"}
        if dynamo:
            program = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=(axes,), verbose=False)
            program.save(file)
        else:
            torch.onnx.export(
                layer, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": axes}, opset_version=17
            )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for shape in ((2, C, 9, 8), (3, C, 12, 20)):
        y = torch.randn(shape)
        (out,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        with torch.no_grad():
            close(torch.from_numpy(out), layer(y))


@pytest.mark.parametrize("name", ["resnet_global_tiny_cifar"])
def test_openvino(name):
    openvino = pytest.importorskip("openvino")
    net, x = network_and_input(name)
    model = openvino.compile_model(openvino.convert_model(net, example_input=x), "CPU")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(model(x.numpy())[0]), net(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [n for n in LAYERS if "changes" not in n])
def test_export_with_dynamic_batch_height_and_width(name):
    layer, x = layer_and_input(name)
    batch, height, width = (torch.export.Dim(n, min=3) for n in ("batch", "height", "width"))
    program = torch.export.export(
        layer, (torch.cat([x, x, x]),), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )
    with torch.no_grad():
        for shape in ((3, C, 4, 4), (5, C, 13, 6)):
            y = torch.randn(shape)
            close(program.module()(y), layer(y))
