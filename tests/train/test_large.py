"""Large trainings in small: on two processes and from shards, a killed one resumes bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from globalcnn.data import load_data
from globalcnn.models.weights import read_weights
from globalcnn.train import Progress, Recipe, Silent
from globalcnn.train.state import load_state

from .conftest import striped, train_net

EPOCHS = 5
SETTINGS = (
    *("--epochs", str(EPOCHS), "--batch-size", "8", "--image-size", "40", "--device", "cpu", "--seed", "1"),
    *("--optimizer", "rmsproptf", "--optimizer-eps", "1e-3", "--lr", "0.002", "--no-decay-norms-and-biases"),
    *("--ema-decay", "0.9", "--precision", "bf16", "--drop-rate", "0.2", "--lr-noise", "0.2", "0.9"),
    *("--rand-augment", "rand-m9-mstd0.5", "--random-erasing", "0.2"),
)


def pictures(count: int, *, seed: int) -> list[tuple[Image.Image, int]]:
    images, labels = striped(count, seed=seed, side=48, channels=3)
    return [(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """48 training and 12 test pictures of three classes; of two sizes, so that they are streamed."""
    for split, count in (("train", 48), ("val", 12)):
        for number, (picture, label) in enumerate(pictures(count, seed=count)):
            path = tmp_path / "pictures" / split / f"class{label}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.resize((48, 44) if number == 0 else (48, 48)).save(path)
    return f"folder:{tmp_path / 'pictures'}"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """The same pictures in four training shards and two test shards."""
    pytest.importorskip("webdataset", reason="the optional package webdataset is not installed")
    root = tmp_path / "shards"
    root.mkdir()
    info: dict[str, object] = {}
    for split, count, files in (("train", 48, 4), ("validation", 12, 2)):
        names = [f"{split}-{i}.tar" for i in range(files)]
        each = np.array_split(np.arange(count), files)
        made = pictures(count, seed=count)
        for name, numbers in zip(names, each, strict=True):
            with tarfile.open(root / name, "w") as tar:
                for number in numbers.tolist():
                    picture, label = made[number]
                    encoded = io.BytesIO()
                    picture.save(encoded, "PNG")
                    for suffix, content in (("png", encoded.getvalue()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        info[split] = {"name": split, "filenames": names, "shard_lengths": [len(e) for e in each]}
    (root / "_info.json").write_text(json.dumps({"splits": info, "classes": ["a", "b", "c"]}))
    return f"wds:{root}"


def start(data: str, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "globalcnn", "train", "resnet_global_tiny_cifar", "--data", data, "--out", str(out)),
        *SETTINGS,
        *more,
    ]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for torchrun and all that it started, which no one would end otherwise."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return said


def figures(run: Path) -> list[dict[str, object]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in read]


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_bit_for_bit(folder: str, tmp_path: Path) -> None:
    """SIGKILL for all of them after an epoch, against two processes that were never killed; with averaged
    weights and bf16.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(folder, killed)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (killed / "metrics.jsonl").is_file() and len(figures(killed)) >= 2:  # the state follows
            break
        time.sleep(0.02)
    stopped = process.poll()
    if stopped is None:
        kill(process)
    said, _ = process.communicate()
    assert stopped is None, said[-3000:]
    assert 1 <= load_state(killed / "state.pt")["epoch"] < EPOCHS
    assert "resumed after epoch" in finish(start(folder, killed, "--resume"))
    finish(start(folder, whole))
    assert json.loads((whole / "run.json").read_text())["processes"] == 2
    assert [epoch["epoch"] for epoch in figures(killed)] == list(range(1, EPOCHS + 1))
    assert figures(killed) == figures(whole)
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (read_weights(run / name)[0] for run in (killed, whole))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
    states = [load_state(run / "state.pt") for run in (killed, whole)]
    for part in ("model", "ema"):
        assert all(torch.equal(states[0][part][k], states[1][part][k]) for k in states[0][part])
    differs = [k for k in states[0]["model"] if not torch.equal(states[0]["model"][k], states[0]["ema"][k])]
    assert differs, "the averaged weights are others than the trained ones"


class Killed(Exception):
    """Simulates a kill at a step."""


class KilledInTheSecondEpoch(Silent):
    def stepped(self, progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise Killed


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_a_training_from_shards_goes_on_bit_for_bit(shards: str, tmp_path: Path, validation: float) -> None:
    recipe = Recipe(epochs=3, batch_size=8, rand_augment="rand-m9-mstd0.5", random_erasing=0.3, flip=True)

    def run(out: Path, *, reporter: Silent | None = None, resume: bool = False) -> None:
        data = load_data(shards, validation=validation, seed=2, image_size=24)
        settings = {"seed": 2, "device": "cpu", "reporter": reporter, "resume": resume}
        train_net(
            "resnet_global_tiny_cifar", data, recipe.replace(validation=validation), out=out, **settings
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    with pytest.raises(Killed):
        run(killed, reporter=KilledInTheSecondEpoch())
    assert len(figures(killed)) == 1
    run(killed, resume=True)
    assert figures(killed) == figures(whole)
    one, other = (read_weights(run / "last.safetensors")[0] for run in (killed, whole))
    assert all(torch.equal(one[k], other[k]) for k in one)
    summary = json.loads((whole / "summary.json").read_text())
    assert sum(map(sum, summary["test_confusion"])) == 12
    assert summary["data"]["val"] == (12 if validation else 0)
