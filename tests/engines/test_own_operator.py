"""The Global layer as an operator of ONNX Runtime: the numbers of the PyTorch operator, in every shape."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from globalcnn import PDE, GlobalLayer, create_model
from globalcnn.engines import RUNTIMES, exported_program
from globalcnn.engines.onnx_file import onnx_proto
from globalcnn.engines.own_operator import operator_library, with_own_operators
from globalcnn.errors import UserError
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import GatedSweeps, torch_ops
from globalcnn.optimize.variant import Variant, prepare

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
LIBRARY = operator_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there are no native kernels here")

INPUTS = ("h", "f", "weight", "bias", "scale", "shift")
SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (1, 17, 8, 8),
    (3, 16, 4, 33),
    (1, 64, 40, 40),
    (9, 40, 12, 12),
    (0, 3, 4, 5),
]
SCHEMES = [None, GatedSweeps("transport"), GatedSweeps("sigmoid", "y"), GatedSweeps("rational")]


def one_operator(threads=None):
    """A session of the operator alone, for tensors of any shape."""
    h = onnx.helper
    kinds = [onnx.TensorProto.FLOAT] * len(INPUTS) + [onnx.TensorProto.DOUBLE]
    ranks = (4, 4, 4, 2, 1, 1, 1)
    names = (*INPUTS, "numbers")
    given = [
        h.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(rank)])
        for name, kind, rank in zip(names, kinds, ranks, strict=True)
    ]
    out = h.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [None] * 4)
    node = h.make_node("GlobalLayer", names, ["out"], domain="globalcnn")
    graph = h.make_graph([node], "one", given, [out])
    imports = [h.make_opsetid("", 20), h.make_opsetid("globalcnn", 1)]
    model = h.make_model(graph, opset_imports=imports, ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def call(session, tensors, numbers):
    given = {name: t.numpy() for name, t in zip(INPUTS, tensors, strict=True)}
    given["numbers"] = torch.tensor([float(n) for n in numbers], dtype=torch.float64).numpy()
    return torch.from_numpy(session.run(None, given)[0])


def drawn(i, shape, scheme):
    """Arguments of the operator; options by the digits of i."""
    g = torch.Generator().manual_seed(i)
    C, k = shape[1], (3, 5, 1)[i % 3]
    fields = 4 if scheme is not None or i % 4 else 2
    boundary = ("periodic", "neumann", "dirichlet")[i % 3]
    given = {} if scheme is None else {"scheme": scheme}
    pde = PDE(steps=(1, 2, 0, 3)[i % 4], boundary=boundary, dt=0.15, **given)
    h, f = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    weight = 0.3 * torch.randn(fields, C, k, k, generator=g)
    bias, scale, shift = (torch.randn(*s, generator=g) for s in ((fields, C), (C,), (C,)))
    flags = [bool(i >> bit & 1) for bit in range(5)]
    numbers = (*torch_ops.numbers(0.5, 1.5, pde), (1, 0, 2, 3, 4)[i % 5], *flags)
    return (h, f, weight, bias, scale, shift), numbers


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_computes_what_the_pytorch_operator_does(threads):
    session = one_operator(threads)
    for i, (shape, scheme) in enumerate(itertools.product(SHAPES, SCHEMES)):
        tensors, numbers = drawn(i, shape, scheme)
        wanted = torch.ops.globalcnn.layer(*tensors, *numbers)
        assert torch.equal(call(session, tensors, numbers), wanted), (shape, scheme, numbers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, n: ([t[0], t[1][:, :, 1:], *t[2:]], n), "h and f must be of one shape"),
        (lambda t, n: ([*t[:2], t[2][:3], *t[3:]], n), "the shapes of its parameters do not fit"),
        (lambda t, n: ([*t[:2], t[2][..., 1:], *t[3:]], n), "the shapes of its parameters do not fit"),
        (lambda t, n: ([*t[:3], t[3][:, 1:], *t[4:]], n), "the shapes of its parameters do not fit"),
        (lambda t, n: ([*t[:5], t[5][1:]], n), "the shapes of its parameters do not fit"),
        (lambda t, n: ([*t[:2], torch.zeros(4, 8, 129, 129), *t[3:]], n), "the shapes of its parameters"),
        (lambda t, n: (t, n[1:]), "the shapes of its parameters do not fit"),
        (lambda t, n: (t, (*n[:2], 1e9, *n[3:])), "steps must be from 0 to 10000"),
        (lambda t, n: (t, (*n[:7], 2, *n[8:])), "scheme must be one of"),
        (lambda t, n: (t, (*n[:3], float("nan"), *n[4:])), "a number is not finite"),
    ],
)
def test_what_does_not_fit_is_an_error(change, words):
    tensors, numbers = change(*drawn(1, (2, 8, 6, 6), None))
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=words):
        call(one_operator(), tensors, numbers)


def in_engine(model, x, threads=None):
    made, _ = prepare(model, Variant(fused=True), x)
    program = exported_program(made, x, dynamic=False, own_operators=True)
    proto = onnx_proto(program, own_operators=True)
    kinds = [n.op_type for n in proto.graph.node]
    session = RUNTIMES["onnxruntime"].load(proto.SerializeToString(), threads=threads, operators=LIBRARY)
    return kinds, session.run(x)[0]


@pytest.mark.parametrize(
    ("name", "settings", "shape", "layers"),
    [
        ("resnet_global_cifar", {}, (1, 3, 32, 32), 3),
        ("resnet_global_cifar", {"scheme": "gated-sweeps"}, (2, 3, 16, 24), 3),
        ("resnet_global_tiny_cifar", {}, (3, 3, 32, 32), 3),
        ("mobilenetv2_global", {}, (1, 3, 64, 64), 5),
        ("global_mnist", {}, (2, 1, 28, 28), None),
    ],
)
@torch.no_grad()
def test_networks_are_the_same_function(name, settings, shape, layers):
    torch.manual_seed(0)
    model = create_model(name, **settings).eval()
    x = torch.randn(shape)
    kinds, found = in_engine(model, x)
    wanted = model(x)
    count = kinds.count("GlobalLayer")
    assert count == (layers or count) > 0
    assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max().item())


@torch.no_grad()
def test_layers_without_a_fused_form_keep_their_standard_operators():
    class Doubled(GlobalLayer):
        def forward(self, f, before=None):
            return 2 * super().forward(f, before)

    model = nn.Sequential(GlobalLayer(4), Doubled(4), GlobalLayer(4)).eval()
    x = torch.randn(2, 4, 6, 6)
    kinds, found = in_engine(model, x)
    assert kinds.count("GlobalLayer") == 2
    assert torch.allclose(found, model(x), atol=1e-5)


def test_a_program_of_standard_operators_holds_none():
    made, _ = prepare(GlobalLayer(4).eval(), Variant(fused=True))
    x = torch.randn(1, 4, 6, 6)
    assert all(n.domain == "" for n in onnx_proto(exported_program(made, x, dynamic=False)).graph.node)
    with pytest.raises(UserError, match=r"onnx_symbolic|not one of PyTorch's own"):
        exported_program(with_own_operators(made), x, dynamic=False)


def test_the_form_for_engines_is_another_module():
    layer = GlobalLayer(4).eval()
    model = nn.Sequential(FusedGlobalLayer.from_layer(layer))
    made = with_own_operators(model)
    assert [type(m).__name__ for m in made] == ["EngineGlobalLayer"]


def test_without_native_kernels_it_is_not_offered():
    code = (
        "import torch, globalcnn\n"
        "from globalcnn.optimize.choices import CHOICES, Setting\n"
        "from globalcnn.optimize import Variant\n"
        "model = globalcnn.GlobalLayer(4).eval()\n"
        "setting = Setting(model, torch.randn(2, 4, 6, 6), 1, 1, False, 1, ('onnxruntime',))\n"
        "print(CHOICES[-1].options(Variant(), setting))\n"
    )
    for off, fused in (("0", False), ("", True)):
        environment = {**os.environ, "GLOBALCNN_NATIVE": off}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert ("fused=True" in done.stdout) is fused
