"""The reach benchmark: networks of one size, an equal search, resuming, and the page of its results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import reach as REACH
from benchmarks import reach_networks as NETWORKS
from benchmarks import reach_page as PAGE
from globalcnn.data import from_arrays, load_data
from globalcnn.files import read_json, write_json
from globalcnn.measure import receptive_field
from globalcnn.train import TrainingDiverged

ROOT = Path(__file__).resolve().parents[2]
COEFFICIENTS = ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y")
SEARCHED = [(data, arm) for data, arms in REACH.read_search().items() for arm in arms]


def net(arm):
    return NETWORKS.SmallNet(NETWORKS.ARMS[arm], NETWORKS.equal_width(NETWORKS.ARMS[arm]))


def small_source():
    """Ten training images of each class of reach, and its first two test images."""
    pools = load_data("reach").pools
    train, test = pools["train"], pools["test"]
    chosen = torch.cat([(train.labels == label).nonzero()[:10, 0] for label in (0, 1)])
    return from_arrays(
        train.images[chosen],
        train.labels[chosen],
        x_test=test.images[:2],
        y_test=test.labels[:2],
        validation=0.2,
    )


def test_no_arm_has_fewer_parameters_than_the_sweeps_and_none_many_more():
    counts = {arm: NETWORKS.parameters(net(arm)) for arm in NETWORKS.ARMS}
    assert min(counts.values()) == counts["sweeps"]
    assert max(counts.values()) < 1.1 * counts["sweeps"]


@pytest.mark.parametrize(
    ("arm", "pixels"),
    [("depthwise", 17), ("depthwise-7", 41), ("explicit-k1", 29), ("explicit-k5", 48), ("sweeps", 48)],
)
def test_the_windows_of_the_networks(arm, pixels):
    assert receptive_field(net(arm), (1, 48, 48)).height == pixels


@pytest.mark.parametrize(
    "arm", [name for name, arm in NETWORKS.ARMS.items() if arm.setting.start is not None]
)
def test_a_setting_sets_the_time_step_and_the_start_of_every_layer(arm):
    setting = NETWORKS.Setting(dt=0.7, start=(2.0, 3.0))
    for block in NETWORKS.SmallNet(NETWORKS.ARMS[arm], 12, setting).blocks:
        layer = block[-1]
        biases = torch.cat([layer.get_submodule(f"{name}.norm").bias for name in COEFFICIENTS])
        assert layer.pde.dt == 0.7
        assert 2 <= biases.min() < biases.max() <= 3


def test_an_arm_with_a_pde_needs_a_time_step():
    with pytest.raises(ValueError, match="needs a setting with dt and start"):
        NETWORKS.SmallNet(NETWORKS.ARMS["sweeps"], 12, NETWORKS.Setting(lr=0.1))


def test_every_arm_tries_as_many_settings():
    assert len({len(set(arm.tried)) for arm in NETWORKS.ARMS.values()}) == 1
    assert len({len(arm.tried) for arm in NETWORKS.ARMS.values()}) == 1


def test_the_settings_tell_what_was_searched():
    told = REACH.settings("reach", "sweeps", 0, NETWORKS.Setting(0.02, 3.0, (-1.0, 1.0)))
    assert (told["lr"], told["dt"], told["start"]) == (0.02, 3.0, [-1.0, 1.0])
    assert told["recipe"]["lr"] == 0.02


def test_the_search_has_no_test_images_and_holds_out_the_same_ones():
    whole = load_data("reach", validation=0.1)
    blind = REACH.without_test(whole)
    assert blind.size("test") == 0
    assert [pool for pool in blind.pools if pool != "train"] == []
    assert blind.checksum("val") == whole.checksum("val")
    assert whole.size("test") == 2000


def test_a_training_of_the_search_is_judged_on_held_out_images_alone():
    setting = NETWORKS.Setting(0.01)
    told = REACH.settings("reach", "depthwise", 0, setting)
    told["recipe"]["epochs"] = 1
    found = REACH.try_setting(REACH.without_test(small_source()), told, setting)
    assert len(found["validation"]) == 1
    assert found["validation"][0] == REACH.held_out(found)
    with pytest.raises(AssertionError):  # with test images it refuses
        REACH.try_setting(small_source(), told, setting)


def test_a_training_that_diverges_counts_as_the_worst(monkeypatch):
    def diverges(*given):
        raise TrainingDiverged("the loss became nan")

    monkeypatch.setattr(REACH, "trained", diverges)
    setting = NETWORKS.Setting(0.01)
    found = REACH.try_setting(small_source(), REACH.settings("reach", "depthwise", 0, setting), setting)
    assert found["diverged"] == "the loss became nan"
    assert REACH.held_out(found) == 0


def test_the_effective_field_of_a_local_network_is_zero_outside_its_window():
    torch.manual_seed(0)
    field = REACH.effective_field(net("depthwise"), torch.randn(2, 1, 48, 48))
    rows = (field > 0).any(1).nonzero()[:, 0]
    assert field.max() == 1
    assert int(rows[-1] - rows[0]) + 1 <= 17
    assert REACH.far_share(field) == 0
    assert int(rows[-1] + rows[0]) == 2 * REACH.central_place((48, 48))[0]


def test_the_far_share_of_an_even_field_is_the_area_outside_the_circle():
    share = REACH.far_share(torch.ones(48, 48))
    assert share == pytest.approx(1 - torch.pi * 16**2 / 48**2, abs=0.01)
    assert REACH.far_share(torch.ones(48, 48), distance=0) == pytest.approx(1 - 1 / 48**2)


def test_rows_of_text_keep_two_digits_of_a_field():
    field = torch.rand(5, 4) ** 9
    torch.testing.assert_close(REACH.from_rows(REACH.to_rows(field)), field, rtol=0.05, atol=0)


def test_a_finished_training_is_not_repeated_unless_its_settings_changed(tmp_path, monkeypatch):
    told = REACH.settings("reach", "sweeps", 0)
    path = tmp_path / "reach-sweeps-0.json"
    finished = {"settings": told, "parameters": 1, "accuracy": 0.5, "seconds": 0.0}
    monkeypatch.setattr(REACH, "run", lambda source, told: finished | {"accuracy": 0.75})
    said = []
    write_json(path, finished)
    REACH.run_all(("reach",), ("sweeps",), (0,), tmp_path, said.append)
    write_json(path, finished | {"settings": told | {"dt": 0.123}})
    REACH.run_all(("reach",), ("sweeps",), (0,), tmp_path, said.append)
    line = "reach        gated sweeps, transport    seed 0: 1 parameters, {} % of the test images, 0 s"
    assert said == [line.format("50.0"), line.format("75.0")]


def test_files_of_arms_whose_names_begin_alike_are_told_apart(tmp_path):
    for arm in ("depthwise", "depthwise-7"):
        for seed in (0, 7):
            write_json(
                tmp_path / f"reach-{arm}-{seed}.json", {"settings": REACH.settings("reach", arm, seed)}
            )
    found = REACH.read_runs(tmp_path)["reach"]
    assert {arm: [f["settings"]["seed"] for f in files] for arm, files in found.items()} == {
        "depthwise": [0, 7],
        "depthwise-7": [0, 7],
    }


@pytest.mark.parametrize(("data", "arm"), SEARCHED)
def test_the_setting_in_use_is_the_best_of_the_search(data, arm):
    tried = REACH.read_search()[data][arm]
    assert [setting for setting, _ in tried] == list(NETWORKS.ARMS[arm].tried)
    accuracies = [REACH.held_out(found) for _, found in tried]
    assert accuracies[0] == max(accuracies)


def test_every_arm_was_searched_on_reach():
    assert {arm for data, arm in SEARCHED if data == "reach"} == set(NETWORKS.ARMS)


def test_the_page_says_what_the_results_say():
    text = (ROOT / "docs" / "reach.md").read_text(encoding="utf-8")
    wanted = PAGE.section(REACH.read_runs(), REACH.read_search())
    assert wanted in text, "run: python -m benchmarks.reach_page"


def test_the_results_are_of_the_present_settings():
    for path in sorted(REACH.FOLDER.glob("*.json")):
        told = REACH.settings_of(read_json(path))
        assert told == REACH.settings(told["data"], told["arm"], told["seed"]), path.name


def test_generated_images_have_the_size_that_the_networks_are_probed_with():
    assert load_data("reach").image_size == (48, 48)
