"""8-bit files: nearly the network's accuracy, Global layers in float32, or nothing is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import globalcnn
from globalcnn import GlobalLayer, UserError
from globalcnn.data import load_data
from globalcnn.errors import UserTypeError
from globalcnn.export import Int8
from globalcnn.export import int8 as module
from globalcnn.train import Recipe, train

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


class Net(nn.Module):
    """Convolutions before and behind a Global layer, a norm that is not folded, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.layer = GlobalLayer(8)
        self.before = nn.BatchNorm2d(8, eps=8.0)  # nothing precedes it that it could be folded into
        self.last, self.fc = nn.Conv2d(8, 16, 3, stride=2), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.norm(self.stem(x)).relu())
        return self.fc(self.last(self.before(x).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", validation=0.1)


@pytest.fixture(scope="module")
def net(digits):
    torch.manual_seed(0)
    recipe = Recipe(
        epochs=16,
        batch_size=32,
        optimizer="adamw",
        lr=0.01,
        crop_padding=0,
        ema_decay=0.0,
        label_smoothing=0.0,
    )
    return train(Net(), digits, recipe, seed=0, device="cpu").model.eval()


@pytest.mark.parametrize(("suffix", "batch"), [("onnx", 4), ("xml", 1), ("onnx", None)])
def test_accuracy_is_kept(suffix, batch, net, digits, tmp_path):
    path = tmp_path / f"net.{suffix}"
    example = torch.randn(batch or 1, 1, 28, 28)
    report = globalcnn.export(
        net,
        path,
        example=example,
        data=digits,
        int8=Int8(images=100, max_drop=1.0),
        dynamic=batch is None,
        seconds=0,
    )
    assert report.accuracy.pytorch > 0.8
    assert abs(report.accuracy.engine - report.accuracy.pytorch) <= 0.01
    kinds = report.operators
    assert kinds.get("QuantizeLinear", 0) + kinds.get("FakeQuantize", 0) >= 3
    assert all(check.deviation > 1e-4 for check in report.checks)  # it is not the float network
    if suffix == "onnx":
        told = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
        assert told["int8"]["images"] == 100


def test_global_layers_stay_in_float(net, digits, tmp_path):
    """Of eight convolutions and linear layers, the four of the coefficients read float32."""
    path = tmp_path / "net.onnx"
    globalcnn.export(
        net, path, example=(1, 28, 28), data=digits, int8=Int8(images=50, max_drop=1.0), seconds=0
    )
    graph = onnx.load(path).graph
    made_by = {out: node.op_type for node in graph.node for out in node.output}
    read = [made_by.get(n.input[1], "weights") for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(read) == ["DequantizeLinear"] * 3 + ["weights"] * 4
    int8 = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert sorted(tuple(t.dims) for t in int8) == [(8, 1, 3, 3), (16, 8, 3, 3)]
    scales = {t.name: t.dims for t in graph.initializer if "scale" in t.name}
    assert any(list(dims) == [16] for dims in scales.values())  # one per output channel


@pytest.mark.parametrize("eps", [1e-3, 16.0])
@pytest.mark.parametrize("suffix", ["onnx", "xml", "pt2"])
def test_the_eps_of_norms_survives(eps, suffix, tmp_path):
    """Tools are known to reset it to 1e-5; the small variance makes that a large difference."""

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch, self.group = nn.BatchNorm2d(4, eps=eps), nn.GroupNorm(2, 4, eps=eps)
            self.layer = GlobalLayer(4, norm_eps=eps)
            nn.init.constant_(self.batch.running_var, 1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.group(self.batch(x).sin()))

    model = Norms().eval()
    path = tmp_path / f"norms.{suffix}"
    report = globalcnn.export(model, path, example=(4, 8, 8), seconds=0)
    assert max(check.deviation for check in report.checks) < 1e-5
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        right = model(x)
        for norm in (m for m in model.modules() if hasattr(m, "eps")):
            norm.eps = 1e-5
        assert (model(x) - right).abs().max() > 1e-2 * right.abs().max()


def test_a_file_that_loses_too_much_is_not_written(net, digits, tmp_path, monkeypatch):
    """Calibrated on images that are nearly black, the ranges of activations are too small."""
    batches = module._batches
    monkeypatch.setattr(module, "_batches", lambda *args: (1e-3 * batch for batch in batches(*args)))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"there")
    with pytest.raises(
        UserError, match=r"int8 loses \d+\.\d\d points .*--max-drop\) 0\.5; nothing was written"
    ):
        globalcnn.export(
            net, path, example=(1, 28, 28), data=digits, int8=Int8(images=50), seconds=0, overwrite=True
        )
    assert path.read_bytes() == b"there"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_weights_of_seven_bits_where_products_overflow(net, digits, tmp_path):
    largest = {}
    for reduced in (False, True):
        path = tmp_path / f"{reduced}.onnx"
        how = Int8(images=50, max_drop=100, reduced_range=reduced)
        globalcnn.export(net, path, example=(1, 28, 28), data=digits, int8=how, seconds=0)
        weights = [
            onnx.numpy_helper.to_array(t)
            for t in onnx.load(path).graph.initializer
            if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
        ]
        largest[reduced] = max(int(np.abs(w.astype(int)).max()) for w in weights)
    assert largest[False] > 64 >= largest[True]


@pytest.mark.parametrize(
    ("known", "machine", "reduced"),
    [
        ({"avx512_vnni": True}, "x86_64", False),
        ({"avx_vnni": True}, "AMD64", False),
        ({"avx2": True}, "x86_64", True),
        ({}, "aarch64", False),
    ],
)
def test_processors(known, machine, reduced, monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert Int8().reduces() is reduced
    assert Int8(reduced_range=True).reduces()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": None}, r"int8 needs data \(--data\)"),
        ({"path": "net.pt2"}, "int8 files can be written for onnx and openvino, not for pt2"),
        (
            {"int8": Int8(images=100_000)},
            r"100000 training images and the data 'digits' has \d+: give images=",
        ),
        ({"int8": True}, r"int8=True must be Int8\(\.\.\.\)"),
    ],
)
def test_mistakes_are_named(given, words, net, digits, tmp_path):
    options = {"data": digits, "int8": Int8(images=50), "path": "net.onnx", **given}
    path = tmp_path / options.pop("path")
    with pytest.raises(UserError, match=words):
        globalcnn.export(net, path, example=(1, 28, 28), seconds=0, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": 3}, "images=3 to calibrate must be a whole number, 16 or more"),
        ({"images": 64.0}, r"images=64\.0"),
        ({"max_drop": -0.1}, r"max_drop=-0\.1 must be"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
    ],
)
def test_settings_are_checked(given, words):
    with pytest.raises(UserError, match=words):
        Int8(**given)
    with pytest.raises(UserTypeError):
        globalcnn.export(nn.Identity(), "x.onnx", int8="yes")


def test_a_batch_of_more_images_than_calibrate(net, digits, tmp_path):
    path = tmp_path / "net.onnx"
    report = globalcnn.export(
        net,
        path,
        example=torch.randn(40, 1, 28, 28),
        data=digits,
        int8=Int8(images=16, max_drop=100),
        seconds=0,
    )
    assert report.input_shape == (40, 1, 28, 28)
