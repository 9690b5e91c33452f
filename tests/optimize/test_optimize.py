"""The optimised network is the network; the report says what was done; nothing else is touched."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import UserError, create_model, optimize_for_inference
from globalcnn.errors import UserTypeError
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.optimize import Form, OptimizedModel, choices, search
from globalcnn.optimize.choices import CHOICES, Setting
from globalcnn.optimize.search import compare

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet_global_tiny_cifar", (4, 3, 16, 16)),
        ("densenet_global_cifar", (2, 3, 8, 8)),
        ("darts_global_cifar", (2, 3, 8, 8)),
        ("mobilenetv2_global", (2, 3, 32, 32)),
        ("efficientnet_b0_global", (2, 3, 32, 32)),
        ("global_mnist", (2, 1, 28, 28)),
        ("digits_global", (2, 1, 12, 12)),
        ("efficientnet_b0", (2, 3, 32, 32)),
        ("densenet121", (2, 3, 32, 32)),
        ("tf_mobilenetv3_small_100", (2, 3, 32, 32)),  # convolutions that pad by themselves
    ],
)
def test_all_that_is_done_without_a_compiler_gives_the_same(name, shape, gains, lively):
    model = lively(create_model(name))
    images = torch.randn(shape)
    fast = optimize_for_inference(model, images, compile=False)
    with torch.no_grad():
        deviation, trouble = compare(fast(images), model(images), 1e-4)
    assert trouble is None, fast.report
    assert deviation < 1e-4
    dropped = [r for r in fast.report.rows if r.outcome.startswith(("dropped", "failed"))]
    assert all("no BatchNorm" in r.outcome for r in dropped), fast.report


@pytest.mark.parametrize("name", ["mdeq_cifar", "neural_ode_mnist"])
def test_networks_that_solve(name):
    if name == "neural_ode_mnist":
        pytest.importorskip("torchdiffeq")
    model = create_model(name)
    images = torch.randn(2, model.in_chans, 28, 28)
    fast = optimize_for_inference(model, images, compile=False, seconds=2)
    with torch.no_grad():
        assert torch.allclose(fast(images), model.eval()(images), atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled(gains, monkeypatch, tiny):
    first = lambda best, setting: choices._compiled(best, setting)[:1]  # noqa: E731
    monkeypatch.setattr(search, "CHOICES", (*CHOICES[:2], choices.Choice("compiled", first)))
    import torch._inductor.config as inductor

    before = inductor.freezing
    model = tiny
    fast = optimize_for_inference(model, IMAGES)
    assert fast.form == Form(folded=True, fused=True, compiled=True), fast.report
    assert inductor.freezing == before
    with torch.no_grad():
        assert torch.allclose(fast(IMAGES), model(IMAGES), atol=1e-5)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for images in (IMAGES[:3], torch.randn(1, 3, 24, 20), IMAGES.clone()):
            assert torch.allclose(fast(images), model(images), atol=1e-5)
        with torch.inference_mode():
            assert torch.allclose(fast(IMAGES.clone()), model(IMAGES), atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        fast.load_state_dict({k: v * 0.5 if v.ndim else v for k, v in fast.state_dict().items()})
        assert torch.allclose(fast(IMAGES), fast.model(IMAGES), atol=1e-5)
    again = pickle.loads(pickle.dumps(fast))
    assert again.form == fast.form


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_networks_of_one_class_do_not_crowd_each_other_out():
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for _ in range(3):
            model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
            fast = OptimizedModel(model, Form(compiled=True), IMAGES)
            assert torch.allclose(fast(IMAGES), model(IMAGES), atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_what_is_compiled_runs_only_what_it_was_compiled_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    fast = OptimizedModel(model, Form(compiled=True), IMAGES)
    turned = IMAGES.transpose(2, 3).contiguous().transpose(2, 3)
    with torch.no_grad():
        wanted = model(IMAGES)
        for images in (IMAGES, IMAGES.to(memory_format=torch.channels_last), turned, IMAGES[:1]):
            assert torch.allclose(fast(images), wanted[: len(images)], atol=1e-6)
        with torch.autocast("cpu"):
            assert fast(IMAGES).dtype == torch.bfloat16
        assert fast(IMAGES).dtype == torch.float32


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_what_cannot_be_called_from_cpp_is_compiled_all_the_same(monkeypatch):
    import torch._inductor.config as inductor

    real, asked = torch.compile, []

    def refusing(function, **options):
        compiled = real(function, **options)

        def call(x):
            asked.append(inductor.cpp_wrapper)
            if inductor.cpp_wrapper:
                raise RuntimeError("not here")
            return compiled(x)

        return call

    monkeypatch.setattr(torch, "compile", refusing)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
    with torch.no_grad():
        fast = OptimizedModel(model, Form(compiled=True), IMAGES)
        assert torch.allclose(fast(IMAGES), model(IMAGES), atol=1e-6)
    assert asked[:2] == [True, False]


def test_other_batches_and_sizes(tiny):
    model = tiny
    fast = OptimizedModel(copy.deepcopy(model), Form(piece=2), IMAGES)
    with torch.no_grad():
        for images in (IMAGES[:1], IMAGES[:3], torch.randn(7, 3, 16, 16), torch.randn(5, 3, 9, 13)):
            assert torch.allclose(fast(images), model(images), atol=1e-6)


def test_pieces_of_every_output():
    class Two(nn.Module):
        def forward(self, x):
            return {"sum": x.sum(1), "both": [x, x.mean((1, 2, 3))]}

    out = OptimizedModel(Two(), Form(piece=3), IMAGES)(IMAGES)
    assert torch.equal(out["sum"], IMAGES.sum(1))
    assert torch.equal(out["both"][0], IMAGES)
    assert out["both"][1].shape == (4,)


def test_no_gradients_and_only_eval_mode(tiny):
    fast = optimize_for_inference(tiny, IMAGES.clone().requires_grad_(), compile=False, seconds=0.5)
    assert not fast(IMAGES.clone().requires_grad_()).requires_grad
    assert not any(m.training for m in fast.modules())
    assert fast.eval() is fast
    with pytest.raises(UserError, match="for inference only"):
        fast.train()


def test_converting_the_result_drops_what_was_compiled(tiny):
    fast = OptimizedModel(tiny, Form(compiled=True), IMAGES)
    assert fast.to("cpu")._compiled_for is not None
    assert fast.double()._compiled_for is None
    assert fast(IMAGES.double()).dtype == torch.float64


def test_the_original_is_untouched(gains):
    model = create_model("resnet_global_tiny_cifar").train()
    model.layer1.eval()
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    strides = [p.stride() for p in model.parameters()]
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    random = torch.get_rng_state()
    optimize_for_inference(model, IMAGES, compile=False)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [type(m) for m in model.modules()] == kinds
    assert [p.stride() for p in model.parameters()] == strides
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    assert torch.equal(torch.get_rng_state(), random)


def test_one_thread_only_inside():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        OptimizedModel(Watch(), Form(one_thread=True), IMAGES)(IMAGES)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)


def test_a_form_that_deviates_is_dropped(gains, monkeypatch, tiny):
    """The test of the check: a fused layer that is wrong must not come out."""
    right = FusedGlobalLayer.forward
    monkeypatch.setattr(FusedGlobalLayer, "forward", lambda self, *a: 1.01 * right(self, *a))
    model = tiny
    fast = optimize_for_inference(model, IMAGES, compile=False)
    row = next(r for r in fast.report.rows if r.name == "Global layers fused")
    assert row.outcome.startswith("dropped")
    assert row.deviation > 1e-4
    assert not fast.form.fused
    with torch.no_grad():
        assert torch.allclose(fast(IMAGES), model(IMAGES), atol=1e-4)


def test_a_form_that_fails_is_dropped(gains, monkeypatch, tiny):
    def fail(model):
        raise RuntimeError("no such luck\nsecond line")

    monkeypatch.setattr("globalcnn.optimize.form.fold_batch_norms", fail)
    report = optimize_for_inference(tiny, IMAGES, compile=False).report
    assert report.rows[0].outcome == "failed: no such luck"
    assert "folded" not in report.chosen


def test_comparing():
    wanted = torch.tensor([[1.0, 0.999999, -2.0], [0.0, 1.0, 2.0]])
    assert compare(wanted, wanted, 1e-4) == (0.0, None)
    deviation, trouble = compare(wanted + 1e-5, wanted, 1e-4)
    assert (round(deviation, 7), trouble) == (5e-6, None)
    assert "deviates" in compare(wanted + 1e-3, wanted, 1e-4)[1]
    assert "deviates" in compare(wanted * torch.nan, wanted, 1e-4)[1]
    assert compare(wanted[:1, [1, 0, 2]], wanted[:1], 1e-4)[1] is None  # a tie, but for rounding
    near = torch.tensor([[1.0, 0.9999, 0.0]])
    assert "another class wins for 1 of 1" in compare(near[:, [1, 0, 2]], near, 2e-4)[1]
    assert "structure" in compare([wanted], wanted, 1e-4)[1]
    assert "float64" in compare(wanted.double(), wanted, 1e-4)[1]


def test_the_slower_is_not_chosen(monkeypatch, tiny):
    monkeypatch.setattr(search._Search, "_race", lambda self, tried: [1.0, *(2.0 for _ in tried[1:])])
    report = optimize_for_inference(tiny, IMAGES, compile=False).report
    assert report.chosen == "as is"
    assert {r.outcome for r in report.rows} == {"slower"}
    monkeypatch.setattr(search._Search, "_race", lambda self, tried: [1.0, *(0.99 for _ in tried[1:])])
    assert {r.outcome for r in optimize_for_inference(tiny, IMAGES, compile=False).report.rows} == {"no gain"}


def test_what_is_not_faster_in_the_end_is_given_up(monkeypatch, tiny):
    forms = []

    def race(self, tried):
        forms.append([t.form for t in tried])
        last = len(forms) == 2
        return [1.0, *(1.5 if last else 0.5 for _ in tried[1:])]

    monkeypatch.setattr(search._Search, "_race", race)
    monkeypatch.setattr(search, "CHOICES", CHOICES[:1])
    report = optimize_for_inference(tiny, IMAGES).report
    assert report.chosen == "as is"
    assert report.speedup == 1.0
    assert "in the end" in str(report)


def test_no_form_is_begun_after_the_time(monkeypatch, tiny):
    monkeypatch.setattr(search._Search, "left", lambda self: 0.0)
    report = optimize_for_inference(tiny, IMAGES, seconds=1e-3).report
    assert {r.outcome for r in report.rows} == {"not tried: the time was up"}
    assert report.chosen == "as is"


def options(model, example, best=Form(), *, threads=2, compile=True, map_bytes=1 << 16):  # noqa: B008
    setting = Setting(model, example, map_bytes, threads, compile)
    return {choice.name: choice.options(best, setting) for choice in CHOICES}


def test_options_fit_the_network_and_the_batch():
    plain, single = nn.Conv2d(3, 4, 3), IMAGES[:1]
    found = options(plain, single)
    assert found["convolution + BatchNorm folded"] == found["Global layers fused"] == []
    assert found["threads"] == [Form(one_thread=True)]
    assert options(plain, single, threads=1)["threads"] == options(plain, IMAGES)["threads"] == []
    assert found["pieces of the batch"] == []
    assert options(plain, IMAGES, compile=False)["compiled"] == []
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert options(plain, last)["memory format"] == [Form(memory_format=torch.contiguous_format)]


def test_pieces_are_powers_of_two_near_the_cache(monkeypatch):
    monkeypatch.setattr(choices, "capabilities", lambda: {"l2_cache_size": 1 << 20})
    batch = torch.zeros(64, 3, 8, 8)
    found = options(nn.Identity(), batch, threads=1, map_bytes=1 << 16)["pieces of the batch"]
    assert [f.piece for f in found] == [4, 8, 16, 32]
    assert options(nn.Identity(), batch[:4], threads=1, map_bytes=1 << 16)["pieces of the batch"] == []
    huge = options(nn.Identity(), batch, threads=1, map_bytes=1 << 30)["pieces of the batch"]
    assert [f.piece for f in huge] == [1, 2, 4, 8]


def test_the_report_can_be_read(tiny):
    fast = optimize_for_inference(tiny, IMAGES, compile=False, seconds=2)
    report = fast.report
    text = str(report)
    for word in ("tried", "deviation", "outcome", "4x3x16x16", "float32", "cpu", "chosen:", "times as fast"):
        assert word in text
    assert report.speedup == pytest.approx(report.before / report.seconds)
    assert report.as_dict()["rows"][0]["name"] == "convolution + BatchNorm folded"
    assert report.tolerance == 1e-4
    assert str(fast.form) in repr(fast)


def test_words_of_forms():
    assert str(Form()) == "as is"
    best = Form(folded=True, piece=8)
    assert Form(folded=True, piece=8, compiled=True).beyond(best) == "compiled"
    assert Form(folded=True, compiled=True).beyond(best) == "compiled, without pieces of 8"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"example": [1, 2]}, "example must be a tensor"),
        ({"example": torch.zeros(3, 16, 16)}, r"example has shape \(3, 16, 16\)"),
        ({"example": torch.zeros(0, 3, 16, 16)}, r"\(0, 3, 16, 16\)"),
        ({"example": torch.zeros(1, 3, 16, 16, device="meta")}, "example is on meta but the model on cpu"),
        ({"example": torch.zeros(1, 5, 16, 16)}, "does not run"),
        ({"example": torch.full((1, 3, 16, 16), torch.nan)}, "not finite"),
        ({"seconds": 0}, "seconds=0 must be"),
        ({"seconds": "long"}, "seconds='long'"),
        ({"tolerance": -1.0}, r"tolerance=-1\.0"),
        ({"model": torch.relu}, "must be a torch.nn.Module"),
    ],
)
def test_mistakes(changes, words, tiny):
    given = {"model": tiny, "example": IMAGES, **changes}
    with pytest.raises(UserError, match=words):
        optimize_for_inference(given.pop("model"), given.pop("example"), compile=False, **given)


def test_what_cannot_be_copied():
    model = nn.Conv2d(3, 3, 1)
    model.kept = model.weight * 2
    with pytest.raises(UserError, match="cannot be copied"):
        optimize_for_inference(model, IMAGES)


def test_types(tiny):
    with pytest.raises(UserTypeError):
        optimize_for_inference(tiny, "images")
    assert "optimize_for_inference" in globalcnn.__all__
