"""The proof of condensing: candidates, choice by measured times, trainings, resuming, the page."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from math import inf

import pytest
import torch

from benchmarks import condensing_page as PAGE
from benchmarks.condensing import latency as LATENCY
from benchmarks.condensing.arms import ARMS, REFERENCE, Named, find_arm, is_balanced
from benchmarks.condensing.choice import MEASURES, choose, speedup
from benchmarks.condensing.clock import Clock
from benchmarks.condensing.collect import write_results
from benchmarks.condensing.latency import label, latency_file, measure, read_times
from benchmarks.condensing.objective import ProjectedFeatures, distillation
from benchmarks.condensing.original import Original, first_images
from benchmarks.condensing.pruning import pruned
from benchmarks.condensing.runs import AFTERWARDS, SCRATCH, Settings, work
from benchmarks.deployed_engines import latencies
from benchmarks.stretches import RESULT, OutOfTime
from globalcnn import create_model
from globalcnn.condense import Recovery
from globalcnn.data import load_data
from globalcnn.errors import UserError
from globalcnn.measure import count
from globalcnn.models import make_card, save_weights
from globalcnn.models.weights import read_weights
from globalcnn.train import Recipe, train


@pytest.fixture
def original(tmp_path):
    """A small residual network with fresh weights, for digits."""
    torch.manual_seed(0)
    net = create_model("resnet_tiny_cifar", num_classes=10, in_chans=1)
    data = load_data("digits")
    card = make_card(net, image_size=(28, 28), in_chans=1, classes=data.classes, mean=data.mean, std=data.std)
    save_weights(tmp_path / "original.safetensors", net.state_dict(), card)
    return Original.load(tmp_path / "original.safetensors")


@pytest.fixture
def on_cifar():
    net = create_model("resnet32_cifar", num_classes=10).eval()
    return Original(net, make_card(net, image_size=(32, 32), in_chans=3))


def test_the_speedup_is_the_geometric_mean_of_both_measures():
    a, b = dict(zip(MEASURES, (6.0, 4.0), strict=True)), dict(zip(MEASURES, (1.5, 4.0), strict=True))
    assert speedup(a, b) == pytest.approx(2.0)
    assert speedup(a, {**b, MEASURES[0]: None}) is None


def _candidate(speed, macs, parameters=1):
    return {"speedup": speed, "macs": macs, "parameters": parameters}


def test_the_least_condensed_candidate_that_reaches_the_target_is_taken():
    candidates = {
        "slow": _candidate(1.89, 60),
        "just": _candidate(1.91, 50),
        "small": _candidate(2.0, 40),
        "fastest": _candidate(3.5, 20),
        "failed": _candidate(None, 90),
    }
    assert choose(candidates, 2.0) == "just"
    assert choose(candidates, 3.0) == "fastest"
    assert choose(candidates, 4.0) is None
    assert choose({"many": _candidate(2.0, 5, 9), "few": _candidate(2.5, 5, 1)}, 2.0) == "many"


def test_an_arm_without_target_takes_what_it_has():
    assert choose({"only": _candidate(0.5, 1)}, None) == "only"


def test_candidates_of_condensing_are_balanced_or_all_or_nothing():
    kept = (1, 2, 3)
    found = [k for k in ((a, b) for a in kept for b in kept) if is_balanced(k, (3, 3))]
    assert found == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]


def test_condensing_spans_from_one_block_to_all(on_cifar):
    found = find_arm("condensed-depthwise").candidates(on_cifar)
    removed = {sum(len(s.remove) for s in c.plan.chosen) for c in found.values()}
    assert removed == set(range(1, 13))
    small = found["layer1:1 layer3:1"]
    names = {name for name, _ in small.build().named_modules()}
    assert "layer2.4.conv1" in names
    assert "layer3.4.conv1" not in names
    assert {s.settings["kernel_size"] for s in small.plan.chosen} == {7}


@pytest.mark.parametrize(("round_to", "ranked_together"), [(None, True), (8, False)])
def test_a_pruned_network_is_smaller_trains_and_runs_in_onnx_runtime(on_cifar, round_to, ranked_together):
    net = pruned(on_cifar.model, on_cifar.example(1), 0.4, round_to=round_to, ranked_together=ranked_together)
    assert count(net, (3, 32, 32)).params < 0.7 * count(on_cifar.model, (3, 32, 32)).params
    assert on_cifar.model.conv1.out_channels == 16
    assert round_to is None or net.layer2[0].conv1.out_channels % round_to == 0
    net.train()(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    found = latencies(net, on_cifar.example(1), engines=("onnxruntime",), rounds=3, seconds=0.3)
    assert found["onnxruntime"]["failure"] == ""


def test_a_pruned_network_keeps_the_channels_with_the_largest_weights(original):
    with torch.no_grad():
        for module in original.model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight[:2] *= 1e-3
    block = pruned(original.model, original.example(1), 0.34, ranked_together=False).layer2[1]
    old = original.model.layer2[1]
    assert 2 <= old.conv1.out_channels - block.conv1.out_channels <= 3
    assert block.conv1.weight.abs().mean() > old.conv1.weight.abs().mean()


def test_thinner_networks_are_the_same_with_fewer_channels(on_cifar):
    found = find_arm("thinner").candidates(on_cifar)
    net = found["8-16-32"].build()
    assert [len(net.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [5, 5, 5]
    costs = [sum(p.numel() for p in c.build().parameters()) for c in found.values()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] < sum(p.numel() for p in on_cifar.model.parameters())


def test_thinner_is_for_residual_networks_alone(original):
    other = replace(original, model=create_model("digits_conv"))
    with pytest.raises(UserError, match="residual networks"):
        find_arm("thinner").candidates(other)


def test_an_unknown_arm_is_refused_with_near_ones():
    with pytest.raises(UserError, match="pruned-ranked"):
        find_arm("prunedranked")


def test_features_of_other_channels_are_projected_and_the_projection_learns(original):
    data = first_images(load_data("digits"), 64)
    student = pruned(original.model, original.example(1), 0.3, ranked_together=False)
    recipe = Recipe(epochs=3, batch_size=32, flip=False, ema_decay=0.0)
    goal = distillation(original, student, data, recipe, Recovery())
    assert isinstance(goal, ProjectedFeatures)
    assert goal.projection.out_channels == 8 > goal.projection.in_channels
    before = goal.projection.weight.detach().clone()
    result = train(student, data, recipe, objective=goal)
    assert not torch.equal(before, goal.projection.weight)
    assert ["features" in e["figures"] for e in result.epochs] == [True, False, False]


def test_a_clock_adds_up_the_stretches_and_stops_after_an_epoch(tmp_path):
    path = tmp_path / "seconds.json"
    path.write_text("100.0")
    with pytest.raises(OutOfTime):
        Clock(path, until=time.monotonic() - 1).finished_epoch(None)
    assert json.loads(path.read_text()) >= 100.0
    Clock(path, until=inf).finished_epoch(None)


@pytest.fixture
def quick(monkeypatch):
    """Fewer candidates, and no seconds spent on times that the tests do not read."""
    monkeypatch.setattr("globalcnn.condense.recover_steps.SECONDS_OF_TIMING", 0.05)
    monkeypatch.setattr("benchmarks.condensing.arms.PARTS", 3)
    monkeypatch.setattr("benchmarks.condensing.arms.is_balanced", lambda kept, most: set(kept) == {1})


def _write_times(settings):
    """Made-up times: every candidate is twice as fast."""
    original = settings.original
    arms = {}
    for name in settings.arms:
        found = {}
        for candidate, c in find_arm(name).candidates(original).items():
            found[candidate] = {
                "settings": dict(c.settings),
                "parameters": sum(p.numel() for p in c.build().parameters()),
                "macs": 10**6,
                "onnxruntime_1": 0.001,
                "pytorch_64": 0.01,
                "speedup": 2.0,
            }
        times = {"onnxruntime_1": 0.002, "pytorch_64": 0.02}
        arms[name] = {"original": times, "candidates": found}
    settings.results.mkdir(parents=True, exist_ok=True)
    together = {
        "rounds": 3,
        "load_before": None,
        "environment": _ENVIRONMENT,
        "original": times,
        "candidates": {label(n, k): c for n, arm in arms.items() for k, c in arm["candidates"].items()},
    }
    content = {
        "network": original.name,
        "weights": original.weights(),
        "arms": arms,
        "side_by_side": together,
    }
    latency_file(settings.results, original.name).write_text(json.dumps(content))


_ENVIRONMENT = {"cpu": "a processor", "simd": "AVX2", "threads": 1, "torch": "2"}


def _settings(original, tmp_path, **changes):
    options = {"arms": tuple(ARMS), "epochs": 2, "repair_epochs": 1, "targets": (2.0,), "seeds": (0,)}
    return Settings(
        original=original,
        data="digits",
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        device="cpu",
        train_images=128,
        **{**options, **changes},
    )


@pytest.mark.slow
def test_every_arm_trains_and_the_page_says_what_came_out(original, tmp_path, quick, monkeypatch):
    settings = _settings(original, tmp_path)
    _write_times(settings)
    said: list[str] = []
    assert work(replace(settings, arms=(REFERENCE,)), until=inf, say=said.append) == 1
    _edit(settings.run(REFERENCE, 2.0, 0) / RESULT, seconds=1.5)
    assert work(settings, until=inf, say=said.append) == len(ARMS) - 1
    assert work(settings, until=inf, say=said.append) == 0
    results = {
        name: json.loads((settings.run(name, 2.0, 0) / RESULT).read_text(encoding="utf-8")) for name in ARMS
    }
    for name, r in results.items():
        assert 0 <= r["test_accuracy"] <= 1
        assert (r["before_recovery"] is None) == ARMS[name].from_scratch
        assert r["recipe"]["lr"] == (SCRATCH if ARMS[name].from_scratch else AFTERWARDS).lr
        if ARMS[name].from_scratch:
            assert r["allowed_seconds"] == 1.5
        else:
            assert r["epochs"] + r["repair_epochs"] == 2
    settings.folder.rename(settings.runs / f"{original.name}-digits-2")
    (path,) = write_results(settings.runs, settings.results, epochs=2)
    _check_page(path, monkeypatch, tmp_path)


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))


def _check_page(path, monkeypatch, tmp_path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content["arms"]) == list(ARMS)
    monkeypatch.setattr(PAGE, "FOLDER", path.parent)
    monkeypatch.setattr(PAGE, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(PAGE, "PICTURE", tmp_path / "page.png")
    assert PAGE.main() == 0
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for name, arm in content["arms"].items():
        accuracy = 100 * arm["targets"]["2"]["runs"][0]["test_accuracy"]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {accuracy:.2f} ({accuracy:.2f}) |" in row
        assert "| 2.00 | 1 | 10 |" in row
        assert arm["targets"]["2"]["candidate"] in row
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert PAGE.main() == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arm", "file"), [("condensed-depthwise", "model.safetensors"), ("pruned", "last.safetensors")]
)
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(original, tmp_path, quick, arm, file):
    found = []
    for name, stops in (("once", False), ("stopped", True)):
        settings = _settings(original, tmp_path / name, arms=(arm,), epochs=3)
        _write_times(settings)
        stretches = 0
        while stops and not work(settings, until=time.monotonic(), say=lambda line: None):
            stretches += 1
        assert stretches == (3 if stops else 0)
        work(settings, until=inf, say=lambda line: None)
        (weights,) = (settings.run(arm, 2.0, 0) / "run").rglob(file)
        found.append(read_weights(weights)[0])
    assert len(found[0]) > 20
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key])


def test_arms_from_scratch_wait_for_the_reference(original, tmp_path, quick):
    settings = _settings(original, tmp_path, arms=("thinner",))
    _write_times(settings)
    said: list[str] = []
    assert work(settings, until=inf, say=said.append) == 0
    assert f"waits for {REFERENCE}" in said[0]


def test_an_arm_that_is_never_fast_enough_is_left_out(original, tmp_path, quick):
    settings = _settings(original, tmp_path, arms=("removed",), targets=(3.0,))
    _write_times(settings)
    said: list[str] = []
    assert work(settings, until=inf, say=said.append) == 0
    assert "no candidate is fast enough" in said[0]


def test_trainings_need_times_of_the_same_weights(original, tmp_path, quick):
    settings = _settings(original, tmp_path, arms=("removed",))
    with pytest.raises(UserError, match="--latency"):
        work(settings, until=inf, say=print)
    _write_times(settings)
    with torch.no_grad():
        original.model.conv1.weight.add_(1)
    with pytest.raises(UserError, match="other weights"):
        work(settings, until=inf, say=print)


def _by_parameters(models, example, **options):
    """Made-up times in ONNX Runtime: a second per parameter."""
    seconds = {n: float(sum(p.numel() for p in m.parameters())) for n, m in models.items()}
    return {n: {"onnxruntime": {"seconds": s, "failure": ""}} for n, s in seconds.items()}


def test_latency_measures_each_arm_beside_the_original(original, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(LATENCY, "latencies_of", _by_parameters)
    arms = [find_arm(name) for name in ("removed", "thinner")]
    options = {"rounds": 3, "seconds": 0.2, "targets": (0.1,), "say": lambda line: None}
    for arm in arms:
        path = measure(original, [arm], tmp_path, **options)
    assert path == tmp_path / "latency-resnet_tiny_cifar.json"
    content = read_times(tmp_path, original.name, original.weights())
    found = content["arms"]
    assert list(found) == ["removed", "thinner"]
    together = content["side_by_side"]
    taken = [choose(arm["candidates"], 0.1) for arm in found.values()]
    assert list(together["candidates"]) == [label(n, c) for n, c in zip(found, taken, strict=True)]
    for arm in (*found.values(), together):
        assert not arm["failures"]
        for c in arm["candidates"].values():
            assert c["speedup"] == pytest.approx(speedup(arm["original"], c))
            assert c["onnxruntime_1"] == c["parameters"]
            assert 0 < c["pytorch_64"] < 100


def test_a_candidate_that_fails_in_an_engine_has_no_speedup(original, tmp_path, quick, monkeypatch):
    def failing(models, example, **options):
        return {n: {"onnxruntime": {"seconds": None, "failure": "no"}} for n in models}

    monkeypatch.setattr(LATENCY, "latencies_of", failing)
    measure(
        original,
        [find_arm("resnet-global")],
        tmp_path,
        rounds=1,
        seconds=0.1,
        targets=(2.0,),
        say=lambda line: None,
    )
    content = read_times(tmp_path, original.name, original.weights())
    (candidate,) = content["arms"]["resnet-global"]["candidates"].values()
    assert candidate["speedup"] is None


def test_only_resnet_global_is_as_fast_as_it_is():
    assert [name for name, arm in ARMS.items() if not arm.meets_target] == ["resnet-global"]
    assert isinstance(ARMS["resnet-global"], Named)


@pytest.mark.parametrize(
    ("changes", "word"), [({"repair_epochs": 2}, "--repair-epochs"), ({"targets": (1.0,)}, "--targets")]
)
def test_settings_that_cannot_be_are_refused(original, tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        _settings(original, tmp_path, **changes)


def test_the_page_without_results_is_an_error_that_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PAGE, "FOLDER", tmp_path)
    monkeypatch.setattr(PAGE, "PAGE", tmp_path / "page.md")
    (tmp_path / "latency-resnet32_cifar.json").write_text("{}")
    assert PAGE.main() == 2
    assert "python -m benchmarks.condensing" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_the_page_says_what_the_results_say():
    found = sorted(PAGE.FOLDER.glob("*.json"))
    assert PAGE.PAGE.is_file() == any(not path.name.startswith("latency-") for path in found)
    if PAGE.PAGE.is_file():
        text = PAGE.PAGE.read_text(encoding="utf-8")
        assert PAGE.section(PAGE.read()) in text, "run: python -m benchmarks.condensing_page"
