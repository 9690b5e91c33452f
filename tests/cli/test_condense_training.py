"""`globalcnn condense` with a folder: its output can be used, it survives a kill, mistakes are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import globalcnn
from globalcnn.cli.main import main
from globalcnn.condense import Plan
from globalcnn.models.weights import read_weights

from .test_mistakes import refused

NETWORK = """
from torch import nn


def block(a, b, stride=1):
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU())


def build(num_classes, in_chans):
    stages = [block(in_chans, 4), *(block(4, 4) for _ in range(3))]
    stages += [block(4, 8, 2), *(block(8, 8) for _ in range(3))]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def single(num_classes, in_chans):
    return nn.Sequential(block(in_chans, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""
# two stages of three blocks that are repeated, and a network that repeats nothing
QUICK = ("--epochs", "1", "--batch-size", "20", "--device", "cpu")
TRAINED = (*QUICK, "--epochs", "4", "--batch-size", "5", "--lr", "0.02", "--ema-decay", "0")
TRAINING = (*QUICK, "--lr", "0.01", "--repair-epochs", "1", "--timing-batch", "2", "--few-images", "5")
SHORT = (*TRAINING, "--block", "norm-act", "--seconds", "0.2")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NETWORK)
    return path


@pytest.fixture(scope="module")
def base(net: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the network in the file."""
    out = tmp_path_factory.mktemp("base") / "run"
    assert main(["train", f"{net}:build", "--data", f"npz:{blobs}", *TRAINED, "--out", str(out)]) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "model.safetensors")[0]


def test_the_condensed_network_is_loaded_evaluated_and_used(run, blobs, tmp_path):
    words = ("train", "resnet_mnist", "--data", f"npz:{blobs}", *QUICK, "--out", tmp_path / "base")
    assert run(*words).status == 0
    out = tmp_path / "out"
    done = run("condense", tmp_path / "base", *SHORT, "--out", out)
    assert done.status == 0, done.err
    for part in ("condensed, norms anew", "end to end", "times as fast", "stages chosen by the plan"):
        assert part in done.out
    report = json.loads((out / "report.json").read_text())
    assert report["condensed"]["params"] < report["original"]["params"]
    assert (out / "report.png").stat().st_size > 1000
    model = globalcnn.load(out)
    assert sum(p.numel() for p in model.parameters()) == report["condensed"]["params"]
    evaluated = run("eval", out, "--json", tmp_path / "eval.json")
    assert evaluated.status == 0, evaluated.err
    accuracy = json.loads((tmp_path / "eval.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(report["condensed"]["test"])
    assert run("info", "resnet_mnist").status == 0
    fast = globalcnn.optimize_for_inference(model, torch.randn(1, 1, 10, 10), seconds=0.5, compile=False)
    with torch.no_grad():
        x = torch.randn(1, 1, 10, 10)
        torch.testing.assert_close(fast(x), model(x), atol=1e-3, rtol=1e-3)
    refused(run("condense", tmp_path / "base", *SHORT, "--out", out), "is not empty: --resume continues")


def test_killed_from_outside_it_resumes_bit_for_bit(run, net, base, tmp_path):
    words = ["condense", str(base), "--model", f"{net}:build", *SHORT, "--epochs", "6", "--out"]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "globalcnn", *words, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    metrics = folder / "end_to_end" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model.safetensors").exists()
    assert run(*words, folder, "--resume").status == 0
    assert run(*words, whole).status == 0
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert run("eval", folder, "--model", f"{net}:build").status == 0


def test_a_plan_is_written_edited_and_taken(run, net, base, tmp_path):
    words = ("condense", base, "--model", f"{net}:build", "--timing-batch", "2", "--seconds", "0.2")
    path, out = tmp_path / "plan.json", tmp_path / "out"
    assert run(*words, "--plan-only", "--out", path).status == 0
    plan = Plan.load(path)
    assert len(plan.chosen) == 2
    plan.edited(plan.stages[0].name, condense=False, block="norm-act").save(path)
    training = ("condense", base, "--model", f"{net}:build", *TRAINING, "--out", out, "--plan", path)
    done = run(*training)
    assert done.status == 0, done.err
    assert [s.name for s in Plan.load(out / "plan.json").chosen] == [plan.stages[1].name]
    plan.edited(plan.stages[1].name, condense=False).save(path)
    refused(run(*training, "--resume"), "cannot be resumed with other settings: plan was")


MISTAKES = [
    (("/no/such/run.safetensors",), ("/no/such/run.safetensors",)),
    (("resnet18", "--data", "BLOBS"), ("'resnet18' is the name of a network without trained weights",)),
    (("NET", ), ("--data is needed",)),
    (("BASE",), ("net.py", "--model", ":build")),
    (("BASE", "--model", "NET", "--data", "OTHER"), ("classes", "'dark', which it was not trained on")),
    (("BASE", "--model", "NET", "--speedup", "50"), ("speedup=50", "nearest is")),
    (("BASE", "--model", "NET", "--speedup", "0.5"), ("speedup=0.5",)),
    (("BASE", "--model", "NET", "--max-params", "10"), ("max_params=10", "the nearest is")),
    (("BASE", "--model", "NET", "--block", "globl"), ("unknown block 'globl'", "'global'")),
    (("BASE", "--model", "NET", "--plan", "/no/plan.json"), ("/no/plan.json",)),
    (("BASE", "--model", "NET", "--plan", "TYPO"), ("plan.json", "condens")),
    (("BASE", "--model", "NET", "--repair-epochs", "-1"), ("repair_epochs=-1",)),
    (("BASE", "--model", "NET", "--distill", "kdd"), ("loss='kdd'",)),
    (("BASE", "--model", "NET", "--timing-batch", "0"), ("--timing-batch 0",)),
    (("BASE", "--model", "NET", "--lr", "-1"), ("lr=-1.0",)),
    (("BASE", "--model", "NET", "--resume"), ("holds no condensing to resume",)),
    (("BASE", "--model", "NET", "--resume", "--overwrite"), ("exclude each other",)),
    (("SINGLE", "--data", "BLOBS"), ("repeats nothing that could be condensed",)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_mistakes(run, blobs, net, base, tmp_path, words, parts):
    paths = {"BASE": base, "NET": f"{net}:build", "BLOBS": f"npz:{blobs}"}
    paths["SINGLE"] = f"{net}:single"
    if "OTHER" in words:
        with np.load(blobs) as arrays:
            np.savez(tmp_path / "other.npz", **arrays, classes=np.array(["dark", "grey", "light"]))
        paths["OTHER"] = f"npz:{tmp_path / 'other.npz'}"
    if "TYPO" in words:
        paths["TYPO"] = tmp_path / "plan.json"
        made = globalcnn.condense.plan(
            globalcnn.load(base, model=f"{net}:build"), torch.randn(1, 1, 10, 10), seconds=None
        )
        text = json.dumps(made.to_json()).replace('"condense"', '"condens"')
        (tmp_path / "plan.json").write_text(text)
    given = [paths.get(word, word) for word in words]
    options = TRAINING if "--plan" in words else SHORT
    done = run("condense", *given[:1], *options, *given[1:], "--out", tmp_path / "out")
    refused(done, *parts)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    refused(run("condense", base, "--model", f"{net}:build"), "give --out FOLDER")
