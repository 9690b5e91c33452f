"""A condensed network is brought back in steps, each of which is kept: killed anywhere, it ends alike."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import globalcnn
from globalcnn import UserError
from globalcnn.condense import Cost, Plan, Recovery, Stage, apply, plan, recover
from globalcnn.condense.budget import Budget
from globalcnn.condense.recover_stages import chosen_by_error, pair_of, remaining_errors, renew_norms
from globalcnn.data import DataSource, from_arrays
from globalcnn.models import make_card
from globalcnn.models.weights import read_weights
from globalcnn.train import Recipe, Silent, StagePair, StagewiseMatching, Teacher, train
from globalcnn.viz import plot_recovery

QUICK = Recipe(
    epochs=2, batch_size=32, lr=0.02, flip=False, crop_padding=1, validation=0.25, label_smoothing=0.0
)
SHORT = Recovery(repair_epochs=1, views=2, few_images=5)


def block(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def network() -> nn.Module:
    """Two stages of three blocks."""

    def stage(width: int) -> nn.Module:
        return nn.Sequential(*(block(width) for _ in range(3)))

    down = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(
        stem, stage(4), down, stage(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows, columns = np.mgrid[:8, :8]
    patterns = np.stack([rows % 4 < 2, columns % 4 < 2, (rows // 2 + columns // 2) % 2 == 0])
    images = 150.0 * patterns[labels] + rng.normal(50, 30, (count, 8, 8))
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def data() -> DataSource:
    (x, y), (x_test, y_test) = stripes(120, 0), stripes(60, 1)
    return from_arrays(
        x_train=x, y_train=y, x_test=x_test, y_test=y_test, validation=0.25, classes=["flat", "tall", "check"]
    )


@pytest.fixture(scope="module")
def original(data: DataSource) -> nn.Module:
    torch.manual_seed(0)
    model = network()
    train(model, data, QUICK.replace(epochs=15, batch_size=8, lr=0.05, ema_decay=0.0), device="cpu")
    return model


@pytest.fixture(scope="module")
def whole(original: nn.Module) -> Plan:
    return plan(original, torch.randn(4, 1, 8, 8), seconds=None)


def recovered(original, data, out, the_plan, **how: Any) -> Any:
    how = {"recovery": SHORT, "seed": 3, "device": "cpu", "example": torch.zeros(4, 1, 8, 8), **how}
    return recover(original, the_plan, data, how.pop("recipe", QUICK), out=out, **how)


@pytest.fixture(scope="module")
def finished(original, data, whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("recovered") / "out"
    before = copy.deepcopy(original.state_dict())
    result = recovered(original, data, out, whole)
    assert same(before, original.state_dict()), "the original is not changed"
    return result


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(folder: Path) -> dict[str, Tensor]:
    return read_weights(folder / "model.safetensors")[0]


def test_what_comes_out(finished, original, data, whole, tmp_path):
    report = json.loads((finished.folder / "report.json").read_text())
    assert [p["phase"] for p in report["phases"]] == ["condensed, norms anew", "repaired", "end to end"]
    assert [(p["phase"], p["epochs"]) for p in report["curve"]] == [
        ("condensed, norms anew", 0),
        ("repair", 1),
        ("repaired", 1),
        ("end to end", 2),
        ("end to end", 3),
    ]
    assert report["condensed"]["params"] < report["original"]["params"]
    assert report["condensed"]["macs"] < report["original"]["macs"]
    assert report["original"]["test"] > 0.6, "the case is one that can be learned"
    assert report["condensed"]["test"] > 0.5
    assert {s["stage"] for s in report["stages"] if s["condensed"]} == {s.name for s in whole.chosen}
    assert all(0 < s["error_after_repair"] < 10 for s in report["stages"])
    again = globalcnn.load(finished.folder, model=apply(original, finished.plan))
    images = next(iter(data.loader("test", 60)))[0]
    with torch.no_grad():
        assert torch.equal(again(images), finished.model(images))
    assert same(weights(finished.folder), finished.model.state_dict())
    plot_recovery(report, tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000


def test_the_weights_that_stay_were_the_original(finished, original, data):
    """After one epoch of repair only the new stages differ; the report's phase says how good that was."""
    repair = read_weights(finished.folder / "repair" / "last.safetensors")[0]
    pairs = [pair_of(s).new for s in finished.plan.chosen]
    for name, value in original.state_dict().items():
        if name in repair and not name.startswith(tuple(f"{p}." for p in pairs)) and "running" not in name:
            assert name.endswith("num_batches_tracked") or torch.equal(repair[name], value), name


class Killed(Exception):
    """Simulates a kill."""


class Killer:
    """Ends the process, so to speak, at the n-th event: a line, or a step of a training."""

    def __init__(self, at: int | None) -> None:
        self.at, self.seen = at, 0

    def tell(self, text: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise Killed

    @contextmanager
    def reporters(self, phase: str, path: Path):
        outer = self

        class Reporter(Silent):
            def stepped(self, progress) -> None:
                outer.tell("")

        yield Reporter()


def test_killed_anywhere_and_resumed_it_ends_with_the_same_weights(finished, original, data, whole, tmp_path):
    for at in (1, 3, 5, 10):  # a line, the repair (2 to 4), a line, the second epoch end to end (9 to 11)
        out = tmp_path / str(at)
        killer = Killer(at)
        with pytest.raises(Killed):
            recovered(original, data, out, whole, tell=killer.tell, reporters=killer.reporters)
        recovered(original, data, out, whole, resume=True)
        assert same(weights(out), weights(finished.folder)), at
    other = recovered(original, data, tmp_path / "other", whole, seed=4)
    assert not same(weights(tmp_path / "other"), weights(finished.folder)), "the comparison can fail"
    done = recovered(original, data, tmp_path / "other", whole, seed=4, resume=True)
    assert same(done.model.state_dict(), other.model.state_dict()), "a finished one is resumed to itself"


def test_a_filled_folder_and_other_settings_are_refused(finished, original, data, whole):
    before = {p: p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()}
    for how, words in (
        ({}, "is not empty: --resume continues"),
        ({"resume": True, "seed": 4}, "seed was 3 and is now 4"),
        ({"resume": True, "recipe": QUICK.replace(lr=0.01)}, "recipe: lr was 0.02 and is now 0.01"),
        ({"resume": True, "recovery": Recovery()}, "recovery: repair_epochs was 1 and is now 2"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ):
        with pytest.raises(UserError, match=words):
            recovered(original, data, finished.folder, whole, **how)
    changed = copy.deepcopy(original)
    with torch.no_grad():
        changed[6].bias += 1
    with pytest.raises(UserError, match="model: weights was"):
        recovered(changed, data, finished.folder, whole, resume=True)
    assert before == {p: p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()}


def test_overwriting_starts_anew_and_leaves_files_of_others(original, data, whole, tmp_path):
    one = QUICK.replace(epochs=1)
    recovered(original, data, tmp_path, whole, recipe=one)
    (tmp_path / "notes.txt").write_text("mine")
    recovered(original, data, tmp_path, whole, recipe=one, seed=5, overwrite=True)
    fresh = recovered(original, data, tmp_path / "fresh", whole, recipe=one, seed=5)
    assert same(weights(tmp_path), fresh.model.state_dict())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_few_images_leave_the_classifier_as_it_was(original, data, whole, tmp_path):
    told: list[str] = []
    result = recovered(
        original, data, tmp_path, whole, recovery=replace(SHORT, few_images=1000), tell=told.append
    )
    assert any("the classifier stays" in line for line in told)
    assert torch.equal(result.model[6].weight, original[6].weight)
    about = json.loads((tmp_path / "end_to_end" / "run.json").read_text())["objective"]
    assert (about["only_features"], about["features"]) == (True, ["3", 1.0, None])


def test_without_repair_and_with_another_card(original, data, whole, tmp_path):
    result = recovered(
        original, data, tmp_path, whole, recovery=Recovery(repair_epochs=0, feature_weight=0, few_images=1)
    )
    assert [p["epochs"] for p in result.report["phases"]] == [0, 0, 2]
    card = make_card(original, image_size=(8, 8), in_chans=1, classes=("flat", "check", "tall"))
    with pytest.raises(UserError, match="the same in another order"):
        recovered(original, data, tmp_path / "b", whole, card=card)
    with pytest.raises(UserError, match="has 'check', which it was not trained on"):
        recovered(original, data, tmp_path / "b", whole, card=replace(card, classes=("flat", "tall", "dots")))
    x, y = stripes(40, 0)
    fewer = from_arrays(x_train=x, y_train=y % 2, x_test=x, y_test=y % 2)
    with pytest.raises(UserError, match="has 3 outputs, and the data 'arrays' has 2 classes"):
        recovered(original, fewer, tmp_path / "b", whole)
    nothing = replace(whole, stages=tuple(replace(s, condense=False) for s in whole.stages))
    with pytest.raises(UserError, match="condenses no stage"):
        recovered(original, data, tmp_path / "c", nothing)


def test_after_a_plan_that_cannot_be_made_the_folder_is_free(original, data, whole, tmp_path):
    def out_of_reach() -> Plan:
        return plan(original, torch.randn(4, 1, 8, 8), seconds=None, max_params=1)

    for mistaken in (out_of_reach, replace(whole, stages=[replace(s, condense=False) for s in whole.stages])):
        with pytest.raises(UserError):
            recovered(original, data, tmp_path / "out", mistaken)
    (tmp_path / "out").rmdir()  # it is empty


def stage(name: str, saved: float, **how: Any) -> Stage:
    cost = {"before": Cost(10, 10, saved + 1.0), "after": Cost(1, 1, 1.0)}
    return Stage(name, (4, 8, 8), (f"{name}.0",), ((f"{name}.1",), (f"{name}.2",)), **{**cost, **how})


@pytest.mark.parametrize(
    ("errors", "speedup", "chosen"),
    [
        ({"a": 0.1, "b": 0.2, "c": 0.9}, 1.25, {"a"}),
        ({"a": 0.5, "b": 0.2, "c": 0.9}, 1.25, {"b"}),
        ({"a": 0.1, "b": 0.2, "c": 0.9}, 1.6, {"a", "b"}),
        ({"a": 0.5, "b": 0.5, "c": 0.9}, 1.6, {"c"}),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, 5.0, {"a", "b", "c"}),
        ({"b": 0.9, "c": 0.5}, 1.25, {"c"}),
    ],
)
def test_stages_are_chosen_by_the_smallest_errors_that_save_enough(errors, speedup, chosen):
    stages = (stage("a", 2.0), stage("b", 2.0), stage("c", 4.0))
    made = Plan("net", (1, 1, 8, 8), stages, (), Cost(100, 100, 10.0), None, {"w": (1,)})
    found = chosen_by_error(made, errors, Budget(speedup=speedup))
    assert {s.name for s in found.chosen} == chosen
    assert found.after.seconds == pytest.approx(10 - sum({"a": 2, "b": 2, "c": 4}[n] for n in chosen))


def test_what_a_stage_learns():
    assert pair_of(stage("a", 1.0)) == StagePair("a.1", "a.1", ("a.2",))
    assert pair_of(stage("a", 1.0, added=True)) == StagePair("a.1", "a.1", ("a.1", "a.2"))
    assert pair_of(stage("a", 1.0, block="none")) == StagePair("a.0", "a.0", ("a.2",))
    assert pair_of(stage("a", 1.0, block="none", added=True)) is None


def test_a_speedup_chooses_among_all_stages(original, data, tmp_path):
    made = plan(original, torch.randn(4, 1, 8, 8), seconds=0.2)
    with_times = [
        replace(s, condense=i == 0, before=Cost(9, 9, 3.0), after=Cost(1, 1, 1.0))
        for i, s in enumerate(made.stages)
    ]
    made = replace(made, stages=tuple(with_times), before=Cost(100, 100, 8.0))
    result = recovered(
        original, data, tmp_path, made, budget=Budget(speedup=1.01), recipe=QUICK.replace(epochs=1)
    )
    errors = {s["stage"]: s["error_after_repair"] for s in result.report["stages"]}
    assert set(errors) == {s.name for s in made.stages}
    assert all(e is not None for e in errors.values())
    assert min(errors, key=errors.get) in {s.name for s in result.plan.chosen}
    assert "errors that remained" in result.report["chosen_by"]


def test_renewed_norms_are_the_statistics_of_the_data(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()).eval()
    loader = data.loader("train", 32, shuffle=True, seed=0)
    momentum = model[1].momentum
    assert renew_norms(model, loader) == 1
    with torch.no_grad():
        means = torch.stack([model[0](x).mean(dim=(0, 2, 3)) for x, _ in loader])
    torch.testing.assert_close(model[1].running_mean, means.mean(dim=0), atol=1e-5, rtol=1e-4)
    assert (model[1].momentum, model.training, model[1].training) == (momentum, False, False)


def test_remaining_errors_leave_the_network_as_it_is(original, data, whole):
    student = apply(original, whole)
    before = copy.deepcopy(student.state_dict())
    pairs = [pair_of(s) for s in whole.chosen]
    goal = StagewiseMatching(Teacher(original), pairs)
    errors = remaining_errors(goal, student, data.loader("val", 16), batches=1)
    assert set(errors) == {p.new for p in pairs}
    assert same(before, student.state_dict())
