"""Any classifier of images trains, is saved, resumes bit for bit, is loaded and judged."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import globalcnn
from globalcnn import UserError
from globalcnn.data import DataSource
from globalcnn.models import NamedSource, read_card
from globalcnn.models.weights import read_weights
from globalcnn.train import CrossEntropy, Objective, Outcome, Recipe, Silent, evaluate, train

QUICK = Recipe(epochs=2, batch_size=24, crop_padding=0, validation=0.25)


def net(classes: int = 3, channels: int = 1, *, seed: int = 0) -> nn.Module:
    """A network of nobody's registry."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, classes),
        )


class Stopped(Exception):
    """Simulates a kill."""


class StoppedInTheSecondEpoch(Silent):
    def stepped(self, progress: Any) -> None:
        if (progress.epoch, progress.step) == (2, 1):
            raise Stopped


def same(a: Path, b: Path) -> bool:
    one, other = (read_weights(run / "last.safetensors")[0] for run in (a, b))
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_train_is_a_function_and_a_package() -> None:
    package = importlib.import_module("globalcnn.train")
    assert globalcnn.train is package.train is train
    assert package.Recipe is Recipe
    assert inspect.isfunction(globalcnn.train)


def test_a_module_resumes_bit_for_bit(stripes: DataSource, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    globalcnn.train(net(), stripes, QUICK, out=whole, device="cpu")
    with pytest.raises(Stopped):
        train(net(), stripes, QUICK, out=stopped, device="cpu", reporter=StoppedInTheSecondEpoch())
    train(
        net(seed=5), stripes, QUICK, out=stopped, device="cpu", resume=True
    )  # its own weights do not matter
    assert same(whole, stopped)
    train(net(seed=5), stripes, QUICK, out=tmp_path / "other", device="cpu")
    assert not same(whole, tmp_path / "other"), "the comparison can fail"


def test_the_module_ends_with_its_last_weights(stripes: DataSource, tmp_path: Path) -> None:
    model = net()
    result = train(model, stripes, QUICK.replace(ema_decay=0.9), out=tmp_path / "run", device="cpu")
    assert result.model is model
    assert not model.training
    kept = read_weights(tmp_path / "run" / "last.safetensors")[0]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    again = evaluate(model, stripes.loader("test", 16), 3)
    assert result.test is not None
    assert again.accuracy == result.test.accuracy


def test_loading_a_module_of_nobodys_needs_the_module(stripes: DataSource, tmp_path: Path) -> None:
    result = train(net(), stripes, QUICK, out=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match=r"class Sequential was passed as an object.*model="):
        globalcnn.load(tmp_path / "run" / "last.safetensors")
    again = globalcnn.load(tmp_path / "run" / "last.safetensors", model=net(seed=9))
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(again(x), result.model(x))


def test_a_source_rebuilds_the_network(stripes: DataSource, tmp_path: Path) -> None:
    model = globalcnn.create_model("digits_conv", num_classes=3, in_chans=1)
    train(model, stripes, QUICK, out=tmp_path / "named", device="cpu")
    again = globalcnn.load(tmp_path / "named" / "last.safetensors")
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(again(x), model(x))
    assert read_card(tmp_path / "named").source == NamedSource("digits_conv")

    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=10):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, num_classes))\n"
    )
    text = f"{tmp_path / 'mine.py'}:build"
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 3))
    train(model, stripes, QUICK, out=tmp_path / "file", device="cpu", source=text)
    with pytest.raises(UserError, match="Weights never run a file: name it again"):
        globalcnn.load(tmp_path / "file" / "last.safetensors")
    again = globalcnn.load(tmp_path / "file" / "last.safetensors", model=text)
    assert torch.equal(again(x), model(x))


def test_what_training_used_stands_in_the_weights(stripes: DataSource, tmp_path: Path) -> None:
    train(net(), stripes, QUICK, out=tmp_path / "run", device="cpu")
    card = read_card(tmp_path / "run")
    assert (card.classes, card.mean, card.std) == (stripes.classes, stripes.mean, stripes.std)
    assert (card.image_size, card.in_chans, card.num_classes) == ((12, 12), 1, 3)


def test_arrays_dictionaries_and_data_sets(tmp_path: Path) -> None:
    images = torch.randint(256, (60, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    one = QUICK.replace(epochs=1)
    pair = train(net(), (images, labels), one, device="cpu")
    names = {"x_train": images, "y_train": labels, "classes": ["a", "b", "c"]}
    named = train(net(), names, one, device="cpu")
    samples = [(image[None], int(label)) for image, label in zip(images, labels, strict=True)]
    listed = train(net(), samples, one, device="cpu")
    assert named.card.classes == ("a", "b", "c")
    for other in (named, listed):
        assert pair.test == other.test
        weights = other.model.state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in pair.model.state_dict().items())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("digits", "load_data"),
        (3, "not int"),
        ({"x_train": [0]}, "lacks x_train or y_train"),
        ({"x_train": [0], "y_train": [0], "test": 1}, "has test"),
    ],
)
def test_data_of_other_kinds(data: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        train(net(), data, QUICK, device="cpu")


class Twice(nn.Module):
    """Returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), x


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (net(2), "it has 2 classes and the data 3"),
        (net(3, 3), r"does not run on input_size=\(1, 12, 12\)"),
        (Twice(), "must return logits .* returns tuple"),
        (nn.Conv2d(1, 3, 3), r"returns a tensor of shape \(1, 3, 10, 10\)"),
        (NoParameters(), "has no parameters to train"),
        (net().double(), "is float64: training takes weights in float32"),
        (nn.Sequential(net(), nn.Linear(3, 3).half()), "1.weight of the network is float16"),
        (net().to("meta"), "on the meta device"),
        (net, "got function net: give the module that it makes"),
        ("digits_conv", r"create_model\('digits_conv'\) makes one"),
    ],
    ids=[
        "classes",
        "channels",
        "pair",
        "map",
        "no parameters",
        "double",
        "partly half",
        "meta",
        "function",
        "name",
    ],
)
def test_modules_that_do_not_fit(stripes: DataSource, model: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        train(model, stripes, QUICK, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


class PairInTraining(nn.Module):
    """As torchvision's networks with auxiliary outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.inner(x)
        return (logits, logits) if self.training else logits


class WithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def one_value_per_channel() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 12), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "batch", "word"),
    [
        (PairInTraining(), 24, "in training mode the network returns tuple"),
        (WithoutGradients(), 24, "forward computes without gradients"),
        (one_value_per_channel(), 1, "take a larger batch_size"),
        (nn.DataParallel(net()), 24, "give the module inside"),
    ],
    ids=["pair", "no gradients", "one value", "wrapped"],
)
def test_modules_that_cannot_be_trained(stripes: DataSource, model: nn.Module, batch: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        train(model, stripes, QUICK.replace(batch_size=batch), device="cpu")


def test_what_torch_compile_wraps_is_trained(stripes: DataSource, tmp_path: Path) -> None:
    model = net()
    result = train(torch.compile(model), stripes, QUICK.replace(epochs=1), out=tmp_path, device="cpu")
    assert result.model is model
    assert not [k for k in read_weights(tmp_path / "last.safetensors")[0] if "_orig_mod" in k]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_compiled_training_is_the_plain_one_and_resumes(stripes: DataSource, tmp_path: Path) -> None:
    def started() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kept = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), globalcnn.GlobalLayer(6))
            return nn.Sequential(*kept, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))

    recipe = QUICK.replace(optimizer="sgd", lr=0.05, compile=True)
    torch.compiler.reset()
    train(started(), stripes, recipe.replace(compile=False), out=tmp_path / "plain", device="cpu")
    train(started(), stripes, recipe, out=tmp_path / "whole", device="cpu")
    plain, whole = (read_weights(tmp_path / run / "last.safetensors")[0] for run in ("plain", "whole"))
    assert plain.keys() == whole.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(whole[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(started(), stripes, recipe, out=out, device="cpu", reporter=StoppedInTheSecondEpoch())
    train(started(), stripes, recipe, out=out, device="cpu", resume=True)
    assert same(out, tmp_path / "whole")


class FailsWhenCompiled(nn.Module):
    """Its forward fails when it is compiled, or always."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.inner, self.plain = net(), plain

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (self.training and not self.plain):
            x = x.reshape(-1, 7, 11)
        return self.inner(x)


@pytest.mark.parametrize("plain", [True, False])
def test_what_cannot_be_compiled_is_said_in_one_line(stripes: DataSource, plain: bool) -> None:
    torch.compiler.reset()
    recipe = QUICK.replace(compile=True, epochs=1)
    wanted = (
        (UserError, r"torch\.compile cannot compile .*compile=False") if plain else (RuntimeError, "shape")
    )
    with pytest.raises(wanted[0], match=wanted[1]) as caught:
        train(FailsWhenCompiled(plain), stripes, recipe, device="cpu")
    assert isinstance(caught.value, UserError) is plain
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_compiler_is_said_in_one_line(stripes: DataSource, tmp_path: Path) -> None:
    torch.compiler.reset()
    absent = torch._inductor.config.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)})
    with (
        absent,
        pytest.raises(UserError, match=r"torch\.compile cannot compile .*train it with compile=False"),
    ):
        train(net(), stripes, QUICK.replace(compile=True, epochs=1), device="cpu")


def test_dropout_of_the_recipe_is_the_constructors(stripes: DataSource) -> None:
    with pytest.raises(UserError, match=r"drop_rate=0.3 is a setting of the network's constructor"):
        train(net(), stripes, QUICK.replace(drop_rate=0.3), device="cpu")


def test_more_outputs_than_classes_can_be_evaluated(stripes: DataSource) -> None:
    result = train(net(10), stripes, QUICK.replace(mixup=0.2), device="cpu")
    assert result.test is not None
    assert len(result.test.confusion) == 10


class Matched(Objective):
    """A teacher, a trained projection, a figure, and a count that is kept: what distillation needs."""

    def __init__(self) -> None:
        self.teacher = net(seed=7).eval()
        self.steps = 0

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module:
        torch.manual_seed(1)
        self.projection = nn.Linear(3, 3)
        self.first = self.projection.weight.detach().clone()
        return self.projection.to(device)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        logits = model(images)
        with torch.no_grad():
            wanted = self.teacher(images)
        match = F.mse_loss(self.projection(logits), wanted)
        self.steps += 1
        return Outcome(F.cross_entropy(logits, targets) + match, logits, {"match": match})

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state(self, state: Any) -> None:
        self.steps = state["steps"]

    def describe(self) -> dict[str, Any]:
        return {"name": "matched"}


def test_an_objective_with_a_teacher_modules_and_state(stripes: DataSource, tmp_path: Path) -> None:
    whole, stopped = Matched(), Matched()
    before = [p.clone() for p in whole.teacher.parameters()]
    result = train(net(), stripes, QUICK, objective=whole, out=tmp_path / "whole", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(before, whole.teacher.parameters(), strict=True))
    assert not torch.equal(whole.projection.weight, whole.first)
    assert whole.steps == 2 * 3
    assert result.epochs[0]["figures"]["match"] > result.epochs[1]["figures"]["match"] > 0
    again = {"out": tmp_path / "stopped", "device": "cpu"}
    with pytest.raises(Stopped):
        train(net(), stripes, QUICK, objective=stopped, reporter=StoppedInTheSecondEpoch(), **again)
    with pytest.raises(UserError, match="name was 'matched' and is now 'cross_entropy'"):
        train(net(), stripes, QUICK, objective=CrossEntropy(label_smoothing=0.1), resume=True, **again)
    second = Matched()
    train(net(), stripes, QUICK, objective=second, resume=True, **again)
    assert second.steps == 6
    assert same(tmp_path / "whole", tmp_path / "stopped")
    assert torch.equal(second.projection.weight, whole.projection.weight)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "1"])
def test_seeds_are_checked(stripes: DataSource, seed: Any) -> None:
    with pytest.raises(UserError, match="seed="):
        train(net(), stripes, QUICK, seed=seed, device="cpu")


def test_the_largest_seed_trains(stripes: DataSource) -> None:
    train(net(), stripes, QUICK.replace(epochs=1), seed=2**32 - 1, device="cpu")


def test_notes_stand_in_run_json(stripes: DataSource, tmp_path: Path) -> None:
    train(net(), stripes, QUICK.replace(epochs=1), out=tmp_path, device="cpu", notes={"purpose": "a test"})
    assert json.loads((tmp_path / "run.json").read_text())["purpose"] == "a test"
