"""Exported files, loaded in their engines, are their networks; what is no such file is not written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import globalcnn
from globalcnn import PDE, GatedSweeps, GlobalLayer, UserError, condense
from globalcnn.data import load_data
from globalcnn.errors import MissingExtra
from globalcnn.export import TARGETS, ExportReport
from globalcnn.export.pte import keep_forever
from globalcnn.models import load_with_card, make_card, save_weights
from globalcnn.train import evaluate
from tests.condense import networks

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("executorch")


class Own(nn.Module):
    """A user's network with a Global layer, and norms whose statistics matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.layer, self.fc = GlobalLayer(8), nn.Linear(8, 5)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.norm(self.conv(x)).relu()).mean((2, 3)))


def in_engine(path: Path) -> Callable[[Tensor], Tensor]:
    """The file, run as its users would, without the code that is tested."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    if path.suffix == ".pte":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
        keep_forever(program, method)
        return lambda x: method.execute([x])[0].clone()
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0])


def check_is(path: Path, model: nn.Module, *shapes: tuple[int, ...]) -> None:
    run = in_engine(path)
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            wanted, got = model(x), run(x)
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def condensed(build: Callable[[], nn.Module], block: str) -> nn.Module:
    model = build()
    return condense.apply(
        model, condense.plan(model, torch.randn(1, 3, 16, 16), block=block, seconds=None)
    ).eval()


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    suffix: str
    size: tuple[int, int, int] = (3, 16, 16)
    dynamic: bool = False


CASES = [
    Case("own, ONNX, dynamic", Own, ".onnx", dynamic=True),
    Case("own, OpenVINO, dynamic", Own, ".xml", dynamic=True),
    Case("own, torch.export, dynamic", Own, ".pt2", dynamic=True),
    Case("digits_global", lambda: globalcnn.create_model("digits_global"), ".onnx", (1, 28, 28)),
    Case("resnet", lambda: globalcnn.create_model("resnet_global_tiny_cifar"), ".xml"),
    Case("sweeps", lambda: globalcnn.create_model("resnet_sweeps_tiny_cifar"), ".pt2"),
    Case("mobilenetv2", lambda: globalcnn.create_model("mobilenetv2_global"), ".pt2", (3, 32, 32)),
    Case("neupde", lambda: globalcnn.create_model("neupde_mnist"), ".pt2", (1, 28, 28)),
    Case("ODE in fixed steps", lambda: globalcnn.create_model("neural_ode_mnist", method="euler"),
         ".pt2", (1, 28, 28)),
    Case("own, ExecuTorch", Own, ".pte"),
    Case("sweeps, ExecuTorch", lambda: globalcnn.create_model("resnet_sweeps_tiny_cifar"), ".pte"),
    Case("timm", lambda: timm.create_model("test_resnet"), ".pt2", (3, 32, 32), dynamic=True),
    Case("condensed, depthwise", lambda: condensed(networks.plain, "depthwise"), ".onnx"),
    Case("condensed, Global", lambda: condensed(networks.WrittenOut, "global"), ".xml"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_file_is_the_network(case, tmp_path):
    model, path = case.build().eval(), tmp_path / f"net{case.suffix}"
    report = globalcnn.export(model, path, example=case.size, dynamic=case.dynamic, seconds=0)
    channels, height, width = case.size
    shapes = [(1, *case.size)]
    if case.dynamic:
        shapes += [(4, *case.size), (1, channels, height + 5, width), (2, channels, height, 2 * width)]
        assert report.input_shape == ("batch", channels, "height", "width")
        assert {c.shape[0] for c in report.checks} >= {1, 2}
        assert len({c.shape[2:] for c in report.checks}) >= 3
    else:
        assert report.input_shape == (1, *case.size)
        assert report.checks[0].batches == 3
    check_is(path, model, *shapes)
    assert all(check.deviation < 1e-4 for check in report.checks)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(report.files)
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert report.engine_latency is None


@pytest.fixture(scope="module")
def own() -> Own:
    return Own().eval()


@pytest.fixture(scope="module")
def card_file(own, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("card") / "w.safetensors"
    card = make_card(
        own, image_size=(16, 16), classes=tuple("abcdé"), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)
    )
    save_weights(path, own.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def with_card(own, card_file, tmp_path_factory) -> dict[str, tuple[Path, ExportReport]]:
    """A file of each target, of a network in training mode with a card."""
    model, card = load_with_card(card_file, model=Own())
    model.train()
    folder, made = tmp_path_factory.mktemp("files"), {}
    for name, target in TARGETS.items():
        path = folder / name / f"net{target.suffix}"
        made[name] = path, globalcnn.export(model, path, card=card, seconds=0.05)
    return made


def test_a_network_in_training_mode_is_exported_in_eval_mode(own, with_card):
    for path, report in with_card.values():
        assert any("training mode" in note for note in report.notes)
        check_is(path, own, (1, 3, 16, 16))


def test_the_card_is_in_the_file(with_card):
    import onnx
    import openvino

    wanted = {"classes": list("abcdé"), "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 2.0]}
    told = {p.key: json.loads(p.value) for p in onnx.load(with_card["onnx"][0]).metadata_props}
    assert wanted.items() <= told.items()
    told = openvino.Core().read_model(with_card["openvino"][0]).get_rt_info(["globalcnn", "classes"])
    assert json.loads(told.astype(str)) == wanted["classes"]
    extra = {"about.json": ""}
    torch.export.load(with_card["pt2"][0], extra_files=extra)
    assert wanted.items() <= json.loads(extra["about.json"]).items()


def test_onnx_has_standard_operators_alone_and_its_weights_inside(with_card):
    import onnx

    path, report = with_card["onnx"]
    model = onnx.load(path, load_external_data=False)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert sum(report.operators.values()) == len(model.graph.node)
    assert (
        report.operators["BatchNormalization"] == 1
    )  # the layer's norm of its output; the others are folded
    assert list(path.parent.iterdir()) == [path]


def test_a_file_does_not_tell_where_it_was_made(with_card):
    for path, _ in with_card.values():
        assert str(Path(globalcnn.__file__).parent).encode() not in path.read_bytes()


def test_pt2_loads_where_this_library_is_missing(own, with_card, tmp_path):
    path = with_card["pt2"][0]
    x = torch.randn(1, 3, 16, 16)
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import sys
sys.modules["globalcnn"] = None  # importing it raises
import torch
out = torch.export.load({str(path)!r}).module()(torch.load({str(tmp_path / "x.pt")!r}))
torch.save(out, {str(tmp_path / "out.pt")!r})
try:
    import globalcnn
except ImportError:
    print("blocked")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "blocked\n", done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), own(x), rtol=1e-4, atol=1e-5)


def test_the_report_in_words(with_card):
    path, report = with_card["openvino"]
    assert report.engine_latency.median > 0
    assert report.pytorch_latency.batch_size == 1
    text = str(report)
    for part in (str(path), str(path.with_suffix(".bin")), "1 x 3 x 16 x 16, 3 batches", "in PyTorch"):
        assert part in text
    assert json.loads(json.dumps(report.as_dict()))["size"] == report.size


def test_the_network_is_left_alone(tmp_path):
    model = Own()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, printed = [m.training for m in model.modules()], str(model)
    globalcnn.export(model, tmp_path / "a.pt2", example=(3, 16, 16), seconds=0)
    assert [m.training for m in model.modules()] == flags
    assert str(model) == printed
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_of_another_function_is_not_kept(name, own, tmp_path, monkeypatch):
    target = TARGETS[name]
    load, path = target.load, tmp_path / f"a{target.suffix}"
    path.write_text("before")

    def wrong(part):
        loaded = load(part)
        return replace(loaded, run=lambda x: [1.01 * out for out in loaded.run(x)])

    monkeypatch.setattr(type(target), "load", lambda self, part: wrong(part))
    with pytest.raises(
        UserError, match=r"for images 1x3x16x16, the output is not the network's: deviates by 1"
    ):
        globalcnn.export(own, path, to=name, example=(3, 16, 16), seconds=0, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"


def test_sizes_that_a_file_cannot_take_are_told(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=3, padding_mode="circular"), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    report = globalcnn.export(net.eval(), tmp_path / "a.pt2", example=(3, 4, 9), dynamic=True, seconds=0)
    assert "it takes images of height 3 or more" in report.notes
    assert min(check.shape[2] for check in report.checks) >= 3


def test_a_program_refuses_sizes_that_it_was_not_traced_for(tmp_path):
    path = tmp_path / "a.pt2"
    report = globalcnn.export(TracedForSomeSizes(), path, example=(3, 16, 16), dynamic=True, seconds=0)
    assert any(note.startswith("it does not take images 1x3x8x8: Guard") for note in report.notes)
    check_is(path, TracedForSomeSizes(), (1, 3, 24, 16))
    with pytest.raises(AssertionError):
        in_engine(path)(torch.randn(1, 3, 8, 8))


def test_an_output_that_says_nothing_is_told(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(net[0].weight)
    report = globalcnn.export(net.eval(), tmp_path / "a.pt2", example=(1, 4, 4), seconds=0)
    assert any("say little" in note for note in report.notes)


@pytest.mark.parametrize("dynamic", [False, True])
def test_accuracy_in_the_engine_and_in_pytorch(dynamic, own, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (26, 16, 16, 3), np.uint8), np.arange(26) % 5
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:13], y_test=labels[:13])
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    report = globalcnn.export(
        own, tmp_path / "a.pt2", example=torch.randn(4, 3, 16, 16), dynamic=dynamic, data=data, seconds=0
    )
    wanted = evaluate(own, data.loader("test", 13, shuffle=False), 5).accuracy
    assert report.accuracy.images == 13
    assert report.accuracy.engine == report.accuracy.pytorch == wanted
    small = load_data(f"npz:{tmp_path / 'a.npz'}", image_size=8)
    with pytest.raises(UserError, match="are 3x8x8 and the file takes 3x16x16"):
        globalcnn.export(own, tmp_path / "b.pt2", example=(3, 16, 16), data=small, seconds=0)


class Branching(nn.Module):
    """Its forward looks at the values."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class TracedForSomeSizes(nn.Module):
    """Its shape becomes a number in a traced graph, which an engine does not check."""

    def forward(self, x):
        return (x * int(x.shape[2] ** 0.5)).mean((2, 3))


class TracedForOneSize(nn.Module):
    """The same of the whole size."""

    def forward(self, x):
        return (x * hash((int(x.shape[2]), int(x.shape[3])))).mean((2, 3))


@dataclass(frozen=True)
class Refused:
    name: str
    model: Callable[[], object]
    message: str
    path: str = "a.pt2"
    settings: tuple[tuple[str, object], ...] = (("example", (3, 16, 16)),)


ANY = (("example", (3, 16, 16)), ("dynamic", True))
REFUSED = [
    Refused("unknown target", Own, "unknown target 'onx'; did you mean 'onnx'", settings=(("to", "onx"),)),
    Refused("suffix", Own, r"'.*a.txt' must end in .onnx \(onnx\) or .xml", path="a.txt"),
    Refused("suffix of another", Own, "must end in .onnx, as files of onnx do", settings=(("to", "onnx"),)),
    Refused("no size", Own, "does not say for which images it is: give example="),
    Refused("wrong channels", Own, r"does not run on input_size=\(1, 16, 16\)",
            settings=(("example", (1, 16, 16)),)),
    Refused("not a batch", Own, r"example is \(3, 16\)", settings=(("example", torch.zeros(3, 16)),)),
    Refused("no module", lambda: 3, "model must be a torch.nn.Module, got int"),
    Refused("double", lambda: Own().double(), "is torch.float64, .* model.float"),
    Refused("seconds", Own, "seconds=-1 must be", settings=(("example", (3, 16, 16)), ("seconds", -1))),
    Refused("adaptive solver", lambda: globalcnn.create_model("neural_ode_mnist"),
            "'neural_ode_mnist' cannot be exported: the adaptive solver looks at the data", settings=()),
    Refused("looks at values", Branching, "cannot be exported: Could not guard on data-dependent"),
    Refused("sweeps", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), GlobalLayer(4, PDE(scheme=GatedSweeps()))),
            r"the sweeps of 1 \(gated-sweeps\) .* leave dynamic \(--dynamic\) out", settings=ANY),
    Refused("one size", lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 3)),
            r"takes images of 16 x 16 alone \(mat1 .*leave dynamic", settings=ANY),
    Refused("traced for one size", TracedForOneSize, "cannot be exported for any batch and image size",
            settings=ANY),
    Refused("wrong at some sizes", TracedForSomeSizes, "for images 1x3x8x8, the output is not the network's",
            path="a.onnx", settings=ANY),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.name)
def test_what_cannot_be_exported_is_refused(case, tmp_path, capfd):
    model = case.model()
    settings = {} if case.name == "no size" else dict(case.settings)
    with pytest.raises(UserError, match=case.message) as told:
        globalcnn.export(model, tmp_path / case.path, **{"seconds": 0, **settings})
    assert len(str(told.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_existing_files_stay(own, tmp_path):
    (tmp_path / "a.bin").write_text("mine")
    (tmp_path / "a.onnx").write_text("mine")
    for name, there in (("a.xml", "a.bin"), ("a.onnx", "a.onnx")):
        with pytest.raises(UserError, match=rf"{there}' is there already: .*--overwrite"):
            globalcnn.export(own, tmp_path / name, example=(3, 16, 16))
        assert (tmp_path / there).read_text() == "mine"


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [(".onnx", "onnxruntime", "onnx"), (".onnx", "onnxscript", "onnx"), (".xml", "openvino", "openvino")],
)
def test_a_missing_package_is_named(suffix, package, extra, own, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}', .* pip install \"globalcnn\[{extra}\]\""):
        globalcnn.export(own, tmp_path / f"a{suffix}", example=(3, 16, 16))
    assert not list(tmp_path.iterdir())


def test_an_operator_of_another_library_is_refused(tmp_path):
    class Calls(nn.Module):
        def forward(self, x):
            boxes = x.mean((2, 3)).abs().repeat(1, 2)[:, :4]
            return x[torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5)]

    with pytest.raises(UserError, match=r"calls the operator torchvision\.nms"):
        globalcnn.export(Calls(), tmp_path / "a.pt2", example=(3, 4, 4), seconds=0)


def test_several_outputs(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return {"mean": x.mean((2, 3)), "map": [x.relu(), x.argmax(1)]}

    report = globalcnn.export(Two(), tmp_path / "a.onnx", example=(3, 6, 5), seconds=0)
    assert report.checks[0].deviation < 1e-6
