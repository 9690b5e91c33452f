"""`globalcnn export`: files of trained and named networks; mistakes in one line, nothing replaced."""

from __future__ import annotations

import json

import pytest
import torch

import globalcnn
from globalcnn import condense
from globalcnn.models import make_card, save_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


def refused(done, *parts):
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


def test_a_trained_network_with_its_accuracy(run, trained, blobs, tmp_path):
    out = tmp_path / "net.onnx"
    words = ("--data", f"npz:{blobs}", "--dynamic", "--seconds", "0.05")
    done = run("export", trained, "--to", "onnx", "--out", out, *words)
    assert done.status == 0, done.err
    for part in ("digits_conv as ONNX", "batch x 1 x height x width", "accuracy, 30 images", "in PyTorch"):
        assert part in done.out
    told = {p.key: json.loads(p.value) for p in onnx.load(out).metadata_props}
    assert told["classes"] == ["0", "1", "2"]
    assert len(told["mean"]) == len(told["std"]) == 1
    assert "training mode" not in done.out


def test_a_network_by_name_and_two_files(run, tmp_path):
    out = tmp_path / "a" / "net.xml"
    done = run(
        "export", "digits_conv", "--num-classes", "4", "--batch-size", "3", "--seconds", "0", "--out", out
    )
    assert done.status == 0, done.err
    assert sorted(p.name for p in out.parent.iterdir()) == ["net.bin", "net.xml"]
    assert "3 x 1 x 28 x 28" in done.out
    assert "not trained" in done.out
    assert "latency" not in done.out


def test_a_condensed_network_in_a_file(run, tmp_path):
    model = globalcnn.create_model("resnet_tiny_cifar", num_classes=3).eval()
    plan = condense.plan(model, torch.randn(1, 3, 16, 16), seconds=None)
    small = condense.apply(model, plan).eval()
    card = make_card(small, image_size=(16, 16), classes=("a", "b", "c"))
    save_weights(tmp_path / "small.safetensors", small.state_dict(), card)
    out = tmp_path / "small.pt2"
    done = run("export", tmp_path / "small.safetensors", "--out", out, "--seconds", "0")
    assert done.status == 0, done.err
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(x), small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("digits_conv", "--to", "onx", "--out", "a.onnx"), ("unknown target 'onx'", "'onnx'")),
        (
            ("digits_conv", "--to", "coreml", "--out", "a.mlpackage"),
            ("Known: executorch, onnx, onnxruntime, openvino",),
        ),
        (("digits_conv", "--out", "a.pte", "--dynamic"), ("a file of executorch takes one shape",)),
        (("digits_conv", "--out", "a.tflite"), ("'a.tflite' must end in .onnx",)),
        (("digits_conv", "--to", "pt2", "--out", "a.onnx"), ("'a.onnx' must end in .pt2",)),
        (("digits_conv", "--out", "mine.onnx"), ("'mine.onnx' is there already", "--overwrite")),
        (("digits_con", "--out", "a.pt2"), ("unknown model 'digits_con'", "'digits_conv'")),
        (("gone.safetensors", "--out", "a.pt2"), ("there is no checkpoint",)),
        (("digits_conv", "--out", "a.pt2", "--batch-size", "0"), ("--batch-size 0 must be at least 1",)),
        (("digits_conv", "--out", "a.pt2", "--image-size", "0"), ("--image-size 0",)),
        (("digits_conv", "--out", "a.pt2", "--seconds", "-1"), ("seconds=-1.0 must be",)),
        (
            ("neural_ode_mnist", "--out", "a.pt2"),
            ("'neural_ode_mnist' cannot be exported", "adaptive solver"),
        ),
        (
            ("resnet_sweeps_tiny_cifar", "--out", "a.pt2", "--dynamic"),
            ("the sweeps of", "leave dynamic (--dynamic) out"),
        ),
        (("digits_conv",), ("--out",)),
    ],
    ids=lambda v: " ".join(v)[:60],
)
def test_mistakes_are_one_line(run, words, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.onnx").write_text("mine")
    refused(run("export", *words), *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.onnx"]
    assert (tmp_path / "mine.onnx").read_text() == "mine"


def test_data_of_other_classes(run, trained, tmp_path):
    done = run("export", trained, "--out", tmp_path / "a.pt2", "--data", "digits", "--seconds", "0")
    refused(done, "which 'digits_conv' was not trained on")
    assert not list(tmp_path.iterdir())


def test_int8(run, trained, blobs, tmp_path):
    out = tmp_path / "net.onnx"
    words = ("--data", f"npz:{blobs}", "--seconds", "0", "--max-drop", "100", "--calibration-images", "32")
    done = run("export", trained, "--out", out, "--int8", *words)
    assert done.status == 0, done.err
    for part in ("QuantizeLinear", "accuracy, 30 images"):
        assert part in done.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "--int8 needs --data"),
        (("--max-drop", "-1"), "max_drop=-1"),
        (("--calibration-images", "2"), "images=2"),
        (("--data", "npz:BLOBS", "--calibration-images", "99999"), "99999 training images"),
        (("--to", "pt2"), "not for pt2"),
    ],
)
def test_mistakes_of_int8(run, words, part, trained, blobs, tmp_path):
    out = tmp_path / ("net.pt2" if "pt2" in words else "net.onnx")
    words = [word.replace("BLOBS", str(blobs)) for word in words]
    refused(run("export", trained, "--out", out, "--int8", *words), part)
    assert not out.exists()
