"""The optimised network is the network; the report says what was done; nothing else is touched."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import UserError, create_model, optimize_for_inference
from globalcnn.errors import UserTypeError
from globalcnn.measure.agreement import compare_outputs
from globalcnn.optimize.choices import CHOICES, Choice
from globalcnn.optimize.search import Search
from globalcnn.optimize.variant import prepare

from .conftest import search, times


@dataclass(frozen=True)
class Case:
    """A network and the batch that it is optimised for."""

    name: str
    shape: tuple[int, int, int, int]


CASES = [
    Case("resnet_global_tiny_cifar", (4, 3, 16, 16)),
    Case("densenet_global_cifar", (2, 3, 8, 8)),
    Case("efficientnet_b0_global", (2, 3, 32, 32)),
    Case("global_mnist", (2, 1, 28, 28)),
    Case("digits_global", (2, 1, 12, 12)),
    Case("efficientnet_b0", (2, 3, 32, 32)),
    Case("tf_mobilenetv3_small_100", (2, 3, 32, 32)),  # convolutions that pad by themselves
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_is_done_without_a_compiler_gives_the_same(case, lively):
    model = lively(create_model(case.name))
    images = torch.randn(case.shape)
    fast = search(copy.deepcopy(model), images)
    with torch.no_grad():
        found = compare_outputs(fast(images), model(images), tolerance=1e-4)
    assert found, (found, fast.report)
    dropped = [r for r in fast.report.rows if r.outcome.startswith(("dropped", "failed"))]
    assert all("no BatchNorm" in r.outcome for r in dropped), fast.report


@pytest.mark.parametrize("name", ["mdeq_cifar", "neural_ode_mnist"])
def test_networks_with_implicit_layers(name):
    if name == "neural_ode_mnist":
        pytest.importorskip("torchdiffeq")
    model = create_model(name).eval()
    images = torch.randn(2, model.in_chans, 28, 28)
    fast = search(copy.deepcopy(model), images, tolerance=1e-3, seconds=2)
    with torch.no_grad():
        assert torch.allclose(fast(images), model(images), atol=1e-3)


def test_the_original_is_untouched(images):
    model = create_model("resnet_global_tiny_cifar").train()
    model.layer1.eval()
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    layouts = [(p.stride(), p.requires_grad) for p in model.parameters()]
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    random = torch.get_rng_state()
    optimize_for_inference(model, images, compile=False, seconds=0.5)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [type(m) for m in model.modules()] == kinds
    assert [(p.stride(), p.requires_grad) for p in model.parameters()] == layouts
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    assert torch.equal(torch.get_rng_state(), random)


class Off(nn.Module):
    """A network that is a little off."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.01 * self.model(x)


def test_a_variant_that_deviates_is_dropped(tiny, images):
    """The test of the check: fused layers that are wrong must not come out."""

    def wrong(model, variant, example):
        module, notes = prepare(model, variant, example)
        return (Off(module) if variant.fused else module), notes

    fast = search(tiny, images, prepare=wrong)
    row = next(r for r in fast.report.rows if r.name == "Global layers fused")
    assert row.outcome.startswith("dropped: deviates by")
    assert row.deviation > 1e-4
    assert not fast.variant.fused
    assert fast.variant.folded


def test_a_variant_that_fails_is_dropped(tiny, images):
    def failing(model, variant, example):
        if variant.folded:
            raise RuntimeError("no such luck\nsecond line")
        return prepare(model, variant, example)

    report = search(tiny, images, prepare=failing).report
    assert report.rows[0].outcome == "failed: no such luck"
    assert "folded" not in report.chosen


def test_what_stands_in_the_way_of_folding_is_said(images):
    class ControlFlow(nn.Sequential):
        def forward(self, x):
            return x if x.sum() < -1e9 else super().forward(x)

    model = ControlFlow(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    row = search(model, images, choices=CHOICES[:1]).report.rows[0]
    assert "no BatchNorm directly follows" in row.outcome
    assert "cannot be traced" in row.outcome


def test_what_is_not_faster_in_the_end_is_not_taken(tiny, images):
    measured = []

    def timer(candidates, example, **options):
        measured.append(len(candidates))
        return times([1.0, *(1.5 if len(measured) == 2 else 0.5 for _ in range(1, len(candidates)))])

    report = search(tiny, images, timer=timer, choices=CHOICES[:1]).report
    assert (report.chosen, report.speedup) == ("as is", 1.0)
    assert "in the end not faster" in str(report)


def test_no_variant_is_begun_after_the_time(tiny, images):
    report = search(tiny, images, seconds=1e-9).report
    assert {r.outcome for r in report.rows} == {"not tried: the time was up"}
    assert report.chosen == "as is"


def test_the_options_see_the_largest_map_of_an_image(tiny, images):
    seen = []
    choice = Choice("nothing", lambda best, setting: seen.append(setting) or [])
    Search(tiny, images, seconds=1, tolerance=1e-4, compile=False, choices=[choice]).run()
    assert seen[0].map_bytes == 10 * 16 * 16 * 4


def test_the_report_can_be_read(tiny, images):
    fast = search(tiny, images)
    report = fast.report
    text = str(report)
    for word in ("tried", "deviation", "outcome", "4x3x16x16", "float32", "cpu", "chosen:", "times as fast"):
        assert word in text
    assert report.speedup == pytest.approx(report.before / report.seconds)
    assert report.as_dict()["rows"][0]["name"] == "convolution + BatchNorm folded"
    assert report.tolerance == 1e-4
    assert str(fast.variant) in repr(fast)


@dataclass(frozen=True)
class Mistake:
    """One argument that does not fit, and the words that say so."""

    argument: str
    value: object
    words: str


MISTAKES = [
    Mistake("example", [1, 2], "example must be a tensor"),
    Mistake("example", torch.zeros(3, 16, 16), r"example has shape \(3, 16, 16\)"),
    Mistake("example", torch.zeros(0, 3, 16, 16), r"\(0, 3, 16, 16\)"),
    Mistake("example", torch.zeros(1, 3, 16, 16, device="meta"), "example is on meta but the model on cpu"),
    Mistake("example", torch.zeros(1, 5, 16, 16), "does not run"),
    Mistake("example", torch.full((1, 3, 16, 16), torch.nan), "not finite"),
    Mistake("seconds", 0, "seconds=0 must be"),
    Mistake("seconds", "long", "seconds='long'"),
    Mistake("tolerance", -1.0, r"tolerance=-1\.0"),
    Mistake("model", torch.relu, r"must be a torch\.nn\.Module"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.words)
def test_mistakes_are_named(mistake, tiny, images):
    given = {"model": tiny, "example": images, mistake.argument: mistake.value}
    with pytest.raises(UserError, match=mistake.words):
        optimize_for_inference(given.pop("model"), given.pop("example"), compile=False, **given)


def test_what_cannot_be_copied_is_named(images):
    model = nn.Conv2d(3, 3, 1)
    model.kept = model.weight * 2
    with pytest.raises(UserError, match="cannot be copied"):
        optimize_for_inference(model, images)


def test_the_public_function(tiny):
    with pytest.raises(UserTypeError):
        optimize_for_inference(tiny, "images")
    assert "optimize_for_inference" in globalcnn.__all__
