"""The reach benchmark: networks of one size, resuming, and the page that tells its results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import reach as REACH
from benchmarks import reach_page as PAGE
from globalcnn.data import load_data
from globalcnn.files import read_json, write_json
from globalcnn.measure import receptive_field

ROOT = Path(__file__).resolve().parents[2]


def net(arm):
    return REACH.SmallNet(REACH.ARMS[arm], REACH.equal_width(REACH.ARMS[arm]))


def test_no_arm_has_fewer_parameters_than_the_sweeps_and_none_many_more():
    counts = {arm: REACH.parameters(net(arm)) for arm in REACH.ARMS}
    assert min(counts.values()) == counts["sweeps"]
    assert max(counts.values()) < 1.1 * counts["sweeps"]


@pytest.mark.parametrize(
    ("arm", "pixels"), [("depthwise", 17), ("explicit-k1", 29), ("explicit-k5", 48), ("sweeps", 48)]
)
def test_the_windows_of_the_networks(arm, pixels):
    assert receptive_field(net(arm), (1, 48, 48)).height == pixels


def test_the_effective_field_of_a_local_network_is_zero_outside_its_window():
    torch.manual_seed(0)
    field = torch.tensor(REACH.effective_field(net("depthwise"), torch.randn(2, 1, 48, 48)))
    rows = (field > 0).any(1).nonzero()[:, 0]
    assert field.max() == 1
    assert int(rows[-1] - rows[0]) + 1 <= 17


def test_a_finished_training_is_not_repeated_unless_its_settings_changed(tmp_path):
    told = REACH.settings("reach", "sweeps", 0)
    write_json(
        tmp_path / "reach-sweeps-0.json",
        {"settings": told, "parameters": 1, "accuracy": 0.5, "seconds": 0.0},
    )
    said = []
    REACH.run_all(("reach",), ("sweeps",), (0,), tmp_path, said.append)
    assert said == [
        "reach        gated sweeps, transport    seed 0: 1 parameters, 50.0 % of the test images, 0 s"
    ]


def test_the_page_says_what_the_results_say():
    text = (ROOT / "docs" / "reach.md").read_text(encoding="utf-8")
    assert PAGE.section(REACH.read_runs()) in text, "run: python -m benchmarks.reach_page"


def test_the_results_are_of_the_present_settings():
    for path in sorted(REACH.FOLDER.glob("*.json")):
        told = read_json(path)["settings"]
        assert told == REACH.settings(told["data"], told["arm"], told["seed"]), path.name


def test_generated_images_have_the_size_that_the_networks_are_probed_with():
    assert load_data("reach").image_size == (48, 48)
