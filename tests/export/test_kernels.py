"""Files for ONNX Runtime with the kernels beside them: they run without PyTorch and this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import GlobalLayer, UserError
from globalcnn.cli.main import main
from globalcnn.export import Int8
from globalcnn.ops import BACKENDS
from globalcnn.ops.native.build import find_compiler

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    find_compiler() is None or BACKENDS["native"].unavailable() is not None,
    reason="the kernels cannot be compiled here",
)

RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[4], session.run(None, {"images": numpy.load(sys.argv[3])})[0])
assert not {"torch", "globalcnn"} & set(sys.modules)
"""


def run_without_pytorch(path: Path, x: torch.Tensor) -> torch.Tensor:
    given, found = path.with_name("given.npy"), path.with_name("found.npy")
    np.save(given, x.numpy())
    words = [str(path), str(path.with_suffix(".so")), str(given), str(found)]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(found))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    model = globalcnn.create_model("resnet_global_tiny_cifar").eval()
    path = tmp_path_factory.mktemp("kernels") / "tiny.onnx"
    report = globalcnn.export(model, path, to="onnxruntime", dynamic=True, seconds=0)
    return path, model, report


def test_it_runs_where_there_is_only_onnx_runtime(written):
    path, model, _ = written
    for shape in ((1, 3, 32, 32), (5, 3, 48, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        assert torch.allclose(run_without_pytorch(path, x), wanted, atol=1e-4 * wanted.abs().max().item())


def test_the_report_names_both_files_and_the_operators(written):
    path, _, report = written
    assert list(report.files) == [str(path), str(path.with_suffix(".so"))]
    assert report.operators["GlobalLayer"] == 3
    assert report.target == "onnxruntime"


def test_the_library_needs_no_pytorch(written):
    assert b"libtorch" not in written[0].with_suffix(".so").read_bytes()


def test_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "net.onnx"
    words = ["export", "digits_global", "--to", "onnxruntime", "--out", str(out), "--seconds", "0"]
    assert main(words) == 2  # its body is no GlobalLayer
    assert "no Global layer that the kernels compute" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    words[1] = "resnet_global_tiny_cifar"
    assert main(words) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.so"]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(UserError, match="no Global layer that the kernels compute: export it to 'onnx'"):
        globalcnn.export(plain, tmp_path / "a.onnx", to="onnxruntime", example=(3, 8, 8), seconds=0)
    with pytest.raises(
        UserError, match="int8 files can be written for onnx and openvino, not for onnxruntime"
    ):
        globalcnn.export(plain, tmp_path / "a.onnx", to="onnxruntime", int8=Int8())
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        globalcnn.export(plain, tmp_path / "a.so", to="onnxruntime", example=(3, 8, 8))
    (tmp_path / "a.so").write_text("mine")
    with pytest.raises(UserError, match=r"a\.so' is there already"):
        globalcnn.export(plain, tmp_path / "a.onnx", to="onnxruntime", example=(3, 8, 8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.so"]
    assert (tmp_path / "a.so").read_text() == "mine"


def test_without_a_compiler_the_way_out_is_named(tmp_path):
    """The kernels that are already compiled for PyTorch do not serve."""
    code = (
        "import globalcnn, torch\n"
        "net = torch.nn.Sequential(globalcnn.GlobalLayer(3)).eval()\n"
        f"path = {str(tmp_path / 'net.onnx')!r}\n"
        "globalcnn.export(net, path, to='onnxruntime', example=(3, 8, 8), seconds=0)\n"
    )
    environment = {**os.environ, "GLOBALCNN_CACHE": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert "UserError: no C++ compiler: CXX='no-such-compiler' is not there" in done.stderr
    assert not (tmp_path / "net.onnx").exists()


def test_layers_of_all_kinds(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        GlobalLayer(6, globalcnn.PDE(steps=3, boundary="neumann"), diffusivity=0.5, act=nn.SiLU),
        nn.BatchNorm2d(6),
        GlobalLayer(6, kernel_size=5, init=nn.Conv2d(6, 6, 1), residual=True),
        GlobalLayer(6, globalcnn.PDE(scheme=globalcnn.GatedSweeps("sigmoid"))),
        GlobalLayer(6, bounded=True),
    ).eval()
    path = tmp_path / "net.onnx"
    report = globalcnn.export(model, path, to="onnxruntime", example=(3, 12, 10), seconds=0)
    assert report.operators["GlobalLayer"] == 3  # a bounded layer has no kernel
    x = torch.randn(1, 3, 12, 10)
    with torch.no_grad():
        wanted = model(x)
    assert torch.allclose(run_without_pytorch(path, x), wanted, atol=1e-4 * wanted.abs().max().item())
