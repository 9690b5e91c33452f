"""docs/imagenet-cost.md says what results/imagenet-cost/ says, and that follows from its inputs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks import imagenet_cost as COST
from benchmarks import imagenet_cost_page as PAGE
from benchmarks import imagenet_speed as SPEED
from globalcnn.reproduce.rows import published_rows

ROOT = Path(__file__).resolve().parents[2]


CONTENT = PAGE.read()


def text():
    return (ROOT / "docs" / "imagenet-cost.md").read_text(encoding="utf-8")


def test_the_page_says_what_the_results_say():
    assert PAGE.section(CONTENT) in text(), "run: python -m benchmarks.imagenet_cost_page"


def changed(keys):
    content = copy.deepcopy(CONTENT)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = 2 * place[keys[-1]]
    return content


@pytest.mark.parametrize(
    "keys",
    [
        ("measured", "training", "efficientnet_b0_global", "images_per_second"),
        ("measured", "loading", "images_per_second_per_core", "decode"),
        ("assumed", "peak_flops"),
        ("elsewhere", 0, "utilisation"),
        ("runs", 0, "gpus", "64", "hours", 1),
        ("runs", 5, "gpus", "8", "cores_per_gpu_to_keep_up", 0),
    ],
)
def test_a_changed_figure_would_be_noticed(keys):
    assert PAGE.section(changed(keys)) not in text()


def test_the_networks_are_counted_as_published():
    expected = {r.model: r.expected for r in published_rows() if r.model in CONTENT["counts"]}
    assert len(expected) == 6
    for model, counts in CONTENT["counts"].items():
        told = expected[model]
        assert counts["params"] == told["params"]
        assert counts["macs"] == told["macs_conv_fc"] + told["pde_multiplies"]


def test_the_file_is_computed_by_these_scripts_from_the_measured_speeds(monkeypatch):
    measured = json.loads((ROOT / "results" / "imagenet-cost" / "speed.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(COST, "_counts", lambda name: CONTENT["counts"][name])
    assert json.loads(json.dumps(COST.cost(measured))) == CONTENT


@pytest.mark.parametrize("run", CONTENT["runs"], ids=lambda run: run["model"])
def test_hours_by_hand(run):
    """The formulas of the page, for the best and the worst case."""
    images = (
        1_281_167 * {"efficientnet": 450, "mobilenetv3": 600, "mobilenetv2": 200}[run["model"].split("_")[0]]
    )
    flops = 3 * 2 * CONTENT["counts"][run["model"]]["macs"]
    core = CONTENT["measured"]["loading"]["images_per_second_per_core"]["published"]
    for gpus, worst, best in ((8, 0.83, 0.97), (64, 0.5, 0.89)):
        g = run["gpus"][str(gpus)]
        compute = [
            images * flops / (gpus * 989e12 * share * efficiency) / 3600
            for share, efficiency in ((0.05, best), (0.005, worst))
        ]
        loading = [images / (gpus * cores * core) / 3600 for cores in (24, 8)]
        hours = [max(compute[0], loading[0]), max(compute[1], loading[1])]
        assert g["compute_hours"] == pytest.approx(compute)
        assert g["loading_hours"] == pytest.approx(loading)
        assert g["hours"] == pytest.approx(hours)
        assert g["gpu_hours"] == pytest.approx([gpus * h for h in hours])
        assert all(low <= high for low, high in g.values())


@pytest.fixture
def of_a_gpu(tmp_path):
    """A file as imagenet_speed.py writes it on a GPU that trains 1,000 images a second."""
    content = copy.deepcopy(CONTENT["measured"])
    content |= {"device": "a GPU", "device_type": "cuda", "loading": None}
    for speed in content["training"].values():
        speed["images_per_second"] = 1000.0
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(content))
    return path


def test_a_measured_gpu_takes_the_place_of_the_assumed_one(of_a_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(COST, "_counts", lambda name: CONTENT["counts"][name])
    out = tmp_path / "cost.json"
    assert COST.main(["--measured", str(of_a_gpu), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    for run in content["runs"]:
        slow, fast = (run["images"] / (8 * 1000 * e) / 3600 for e in (0.83, 0.97))
        assert run["gpus"]["8"]["compute_hours"] == pytest.approx([fast, slow])
    assert "from the measured speed of a GPU" in PAGE.section(content)


def test_speeds_of_a_cpu_are_not_taken_for_those_of_a_gpu(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(CONTENT["measured"]))
    assert COST.main(["--measured", str(path), "--out", str(tmp_path / "cost.json")]) == 2
    assert "holds the speeds of a CPU; measure on a GPU" in capsys.readouterr().err


def test_measuring_works():
    settings = {"batch_size": 2, "steps": 2, "warmup": 0, "channels_last": True, "side": 32}
    (speed,) = SPEED.training_speeds(["mobilenetv2_100"], device=torch.device("cpu"), **settings).values()
    assert speed["images_per_second"] == pytest.approx(2 / speed["seconds_per_step"])
    assert speed["lower_quartile"] <= speed["seconds_per_step"] <= speed["upper_quartile"]
    loading = SPEED.loading_speeds(seconds=0.05)
    assert 50e3 < loading["mean_bytes"] < 200e3
    speeds = loading["images_per_second_per_core"]
    assert min(speeds.values()) > 0
    assert set(speeds) == set(PAGE.KINDS)
