"""A training can be killed at any moment and resumes bit for bit; no file of the user's is lost."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from globalcnn import UserError
from globalcnn.cli.main import main
from globalcnn.models import load_with_card
from globalcnn.models.weights import read_weights
from globalcnn.train import Recipe, Silent, TrainingDiverged, evaluate
from globalcnn.train.state import load_state

from .conftest import train_net

MODEL = "resnet_global_tiny_cifar"
QUICK = Recipe(epochs=3, batch_size=16, lr=0.05, drop_rate=0.1, crop_padding=2, cutout=3, ema_decay=0.9)


class Killed(Exception):
    """Simulates a kill at a step."""


class KilledAt(Silent):
    """A reporter that kills the training at a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def stepped(self, progress) -> None:
        if (progress.epoch, progress.step) == self.at:
            raise Killed


def weights(folder: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return read_weights(folder / name)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(stripes, tmp_path_factory):
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_net(MODEL, stripes, QUICK, out=folder, seed=3, device="cpu")
    return folder


@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 1), (3, 4)])
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(stripes, finished, tmp_path, epoch, step):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        train_net(MODEL, stripes, QUICK, out=folder, seed=3, device="cpu", reporter=KilledAt(epoch, step))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == epoch - 1
    train_net(MODEL, stripes, QUICK, out=folder, seed=3, device="cpu", resume=True)
    assert same(weights(folder), weights(finished))
    assert same(weights(folder, "best.safetensors"), weights(finished, "best.safetensors"))
    timeless = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines(folder)]
    assert timeless == [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines(finished)
    ]


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_another_seed_gives_other_weights(stripes, finished, tmp_path):
    """The comparison above can fail."""
    train_net(MODEL, stripes, QUICK, out=tmp_path / "run", seed=4, device="cpu")
    assert not same(weights(tmp_path / "run"), weights(finished))


def test_a_run_killed_from_outside_resumes_bit_for_bit(stripes_file, tmp_path):
    """SIGKILL at an arbitrary moment, through the command line, against a run that was never killed."""
    whole, folder, epochs = tmp_path / "whole", tmp_path / "killed", 15
    words = ["train", MODEL, "--data", f"npz:{stripes_file}", "--epochs", str(epochs), "--batch-size", "16"]
    words += ["--device", "cpu", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "globalcnn", *words, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and len(lines(folder)) >= 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= load_state(folder / "state.pt")["epoch"] < epochs
    assert main([*words, str(folder), "--resume"]) == 0
    assert main([*words, str(whole)]) == 0
    assert [json.loads(line)["epoch"] for line in lines(folder)] == list(range(1, epochs + 1))
    assert same(weights(folder), weights(whole))
    assert same(weights(folder, "best.safetensors"), weights(whole, "best.safetensors"))


def test_what_a_run_folder_holds(stripes, finished):
    about = json.loads((finished / "run.json").read_text())
    assert about["seed"] == 3
    assert about["recipe"] == json.loads(json.dumps(QUICK.as_dict()))
    assert about["model"]["name"] == MODEL
    assert about["data"] == {**stripes.identity(), "test": 48}
    assert {"python", "torch", "timm", "globalcnn", "cpu", "threads"} <= set(about["environment"])
    summary = json.loads((finished / "summary.json").read_text())
    model, description = load_with_card(finished / "last.safetensors")
    result = evaluate(model, stripes.loader("test", 7), len(stripes.classes))
    assert result.accuracy == pytest.approx(summary["test_accuracy"])
    assert description.classes == stripes.classes
    assert [json.loads(line)["epoch"] for line in lines(finished)] == [1, 2, 3]


def test_the_best_weights_are_chosen_by_the_held_out_images(stripes, finished):
    accuracies = [json.loads(line)["val_accuracy"] for line in lines(finished)]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["best_epoch"] == 1 + accuracies.index(max(accuracies))
    model, _ = load_with_card(finished)  # a run folder means its best weights
    held_out = evaluate(model, stripes.loader("val", 24), 3)
    assert held_out.accuracy == pytest.approx(max(accuracies))


def test_a_filled_folder_is_not_touched_without_a_word(stripes, finished, tmp_path):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    with pytest.raises(UserError, match="is not empty: --resume continues"):
        train_net(MODEL, stripes, QUICK, out=finished, seed=3, device="cpu")
    with pytest.raises(UserError, match=r"lr was 0.05 and is now 0.5"):
        train_net(MODEL, stripes, QUICK.replace(lr=0.5), out=finished, seed=3, device="cpu", resume=True)
    with pytest.raises(UserError, match="seed was 3 and is now 5"):
        train_net(MODEL, stripes, QUICK, out=finished, seed=5, device="cpu", resume=True)
    with pytest.raises(UserError, match="name was 'resnet_global_tiny_cifar' and is now 'resnet_tiny_cifar'"):
        train_net("resnet_tiny_cifar", stripes, QUICK, out=finished, seed=3, device="cpu", resume=True)
    with pytest.raises(UserError, match="exclude each other"):
        train_net(MODEL, stripes, QUICK, out=finished, seed=3, device="cpu", resume=True, overwrite=True)
    assert {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


def test_overwrite_replaces_the_run_and_leaves_files_of_others(stripes, tmp_path):
    one = QUICK.replace(epochs=1)
    train_net(MODEL, stripes, one, out=tmp_path, seed=0, device="cpu")
    (tmp_path / "notes.txt").write_text("mine")
    train_net(MODEL, stripes, one.replace(validation=0.0), out=tmp_path, seed=1, device="cpu", overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 1


def test_resume_where_nothing_is(stripes, tmp_path):
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no run to resume"):
        train_net(MODEL, stripes, QUICK, out=tmp_path, device="cpu", resume=True)


def test_a_diverging_run_names_the_step_and_the_layer_and_keeps_the_last_good_weights(stripes, tmp_path):
    recipe = QUICK.replace(lr=1e30, warmup_epochs=0.0, ema_decay=0.0)
    with pytest.raises(TrainingDiverged) as caught:
        train_net(MODEL, stripes, recipe, out=tmp_path, seed=0, device="cpu")
    message = str(caught.value)
    assert "step 2 of epoch 1" in message
    assert "layer1.0.conv1' (" in message
    assert "lower lr" in message
    assert all(torch.isfinite(w.float()).all() for w in weights(tmp_path).values())
    assert load_state(tmp_path / "state.pt")["epoch"] == 0


def test_the_layer_where_nan_begins_is_found():
    from globalcnn.train.divergence import where_it_began

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3))
    assert "loss itself" in where_it_began(model, torch.ones(1, 3))
    assert "images" in where_it_began(model, torch.full((1, 3), torch.nan))

    class Bad(torch.nn.Module):
        def forward(self, x):
            return x / 0 * 0

    assert "'1' (Bad)" in where_it_began(torch.nn.Sequential(torch.nn.ReLU(), Bad()), torch.ones(1, 3))
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    assert "weights of layer '2'" in where_it_began(model, torch.ones(1, 3))


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"num_classes": 2}, "it has 2 classes and the data 3"), ({"in_chans": 3}, "it reads 3 channels")],
)
def test_a_network_that_does_not_fit_the_data(stripes, settings, word):
    with pytest.raises(UserError, match=word):
        train_net(MODEL, stripes, QUICK, device="cpu", **settings)


def test_unknown_devices_and_optimisers(stripes):
    with pytest.raises(UserError, match="device='tpu' must be auto, cpu"):
        train_net(MODEL, stripes, QUICK, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no CUDA device"):
            train_net(MODEL, stripes, QUICK, device="cuda")
    with pytest.raises(UserError, match="unknown optimizer 'sgdd'"):
        train_net(MODEL, stripes, QUICK.replace(optimizer="sgdd"), device="cpu")
    with pytest.raises(UserError, match="needs second derivatives"):
        train_net(MODEL, stripes, QUICK.replace(optimizer="adahessian"), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"mixup": 0.4, "cutmix": 1.0},
        {"channels_last": True, "grad_clip": 1.0},
        {"optimizer": "adamw", "lr": 1e-3, "schedule": "exponential", "decay_rate": 0.9},
        {"optimizer": "rmsproptf", "optimizer_eps": 1e-3, "lr": 1e-3, "schedule": "constant"},
        {"schedule": "step", "milestones": (1, 2), "validation": 0.0},
    ],
)
def test_recipes_run(stripes, change):
    result = train_net(MODEL, stripes, QUICK.replace(epochs=2, **change), device="cpu")
    assert len(result.epochs) == 2
    assert all(e["train_loss"] > 0 for e in result.epochs)


def test_bf16_without_its_instructions_is_said(stripes, monkeypatch):
    once = QUICK.replace(epochs=1)
    setting_up = importlib.import_module("globalcnn.train.setting_up")
    monkeypatch.setattr(setting_up, "get_cpu_capability", lambda: "AVX2")
    with pytest.warns(UserWarning, match=r"precision='bf16': on this processor \(AVX2\)"):
        train_net(MODEL, stripes, once.replace(precision="bf16"), device="cpu")
    monkeypatch.setattr(setting_up, "get_cpu_capability", lambda: "AVX512")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_net(MODEL, stripes, once.replace(precision="bf16"), device="cpu")


def test_a_network_learns(stripes):
    result = train_net("resnet_global_tiny_cifar", stripes, QUICK.replace(epochs=12, cutout=0), device="cpu")
    assert result.test.accuracy > 0.9


def test_the_learning_rate_follows_the_schedule(stripes):
    step = QUICK.replace(
        epochs=3, lr=0.1, schedule="step", milestones=(1, 2), warmup_epochs=0.0, ema_decay=0.0
    )
    rates = [e["lr"] for e in train_net(MODEL, stripes, step, device="cpu").epochs]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    constant = step.replace(schedule="constant", milestones=())
    assert [e["lr"] for e in train_net(MODEL, stripes, constant, device="cpu").epochs] == pytest.approx(
        [0.1] * 3
    )
    cosine = [
        e["lr"] for e in train_net(MODEL, stripes, step.replace(schedule="cosine"), device="cpu").epochs
    ]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.01


def test_two_processes_on_one_cpu(stripes_file, tmp_path):
    """torchrun with gloo: both processes train one network, which is as good as its summary says."""
    folder = tmp_path / "run"
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "globalcnn", "train", MODEL, "--data", f"npz:{stripes_file}", "--epochs", "2"),
        *("--batch-size", "12", "--validation", "0.25", "--out", str(folder), "--device", "cpu"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads((folder / "run.json").read_text())
    assert about["processes"] == 2
    assert len(lines(folder)) == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(map(sum, summary["test_confusion"])) == 48
    from globalcnn.data import load_data

    model, _ = load_with_card(folder / "last.safetensors")
    data = load_data(f"npz:{stripes_file}", validation=0.25)
    assert evaluate(model, data.loader("test", 16), 3).accuracy == pytest.approx(summary["test_accuracy"])
