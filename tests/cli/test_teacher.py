"""`globalcnn train --teacher`: the same network learns from another one; what does not fit is one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from globalcnn.cli import reporting
from globalcnn.models.weights import checksum, read_weights

from .test_mistakes import refused

QUICK = ("--epochs", "2", "--batch-size", "10", "--device", "cpu")


def weights(folder):
    return read_weights(folder / "last.safetensors")[0]


def test_a_network_learns_from_a_run(run, blobs, trained, tmp_path):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK, "--seed", 1)
    done = run(*words, "--teacher", trained, "--views", 2, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    told = json.loads((tmp_path / "a" / "run.json").read_text())
    found = checksum(read_weights(trained)[0])
    assert told["teacher"] == {"path": str(trained), "model": "digits_conv", "sha256": found}
    objective = {k: told["objective"][k] for k in ("name", "loss", "temperature", "views")}
    assert objective == {"name": "distillation", "loss": "kd", "temperature": 4.0, "views": 2}
    assert (tmp_path / "a" / "teacher.safetensors").is_file()
    assert run(*words, "--out", tmp_path / "b").status == 0
    assert any(not torch.equal(v, weights(tmp_path / "b")[k]) for k, v in weights(tmp_path / "a").items())
    assert run("eval", tmp_path / "a").status == 0


def test_a_network_learns_from_several_runs(run, blobs, trained, tmp_path):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK)
    other = tmp_path / "other"
    assert run(*words, "--seed", 3, "--out", other).status == 0
    taught = ("--teacher", trained, "--teacher", other, "--views", 1)
    done = run(*words, *taught, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    told = json.loads((tmp_path / "a" / "run.json").read_text())["teacher"]
    assert (told["path"], told["model"]) == ([str(trained), str(other)], ["digits_conv"] * 2)
    assert told["sha256"] == [checksum(read_weights(folder)[0]) for folder in (trained, other)]
    again = ("--recipe", tmp_path / "a" / "run.json", "--out", tmp_path / "b")
    said = f"learned from {trained} and {other} too; here the labels alone count"
    assert said in run(*words[:4], *again).out.replace("\n", " ")
    wrong = run(*words, *taught, "--teacher-model", "digits_conv", "--out", tmp_path / "c")
    refused(wrong, "--teacher-model digits_conv says how one teacher is built, and there are 2")


def test_the_recipe_of_a_training_with_a_teacher_names_the_teacher_that_it_leaves_out(
    run, blobs, trained, tmp_path
):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK)
    taught = ("--teacher", trained, "--views", 1)
    assert run(*words, *taught, "--out", tmp_path / "a").status == 0
    words += ("--recipe", tmp_path / "a" / "run.json", "--out")
    left_out, kept = run(*words, tmp_path / "b"), run(*words, tmp_path / "c", *taught)
    said = f"learned from {trained} too; here the labels alone count"
    assert f"{said}; give --teacher" in left_out.out.replace("\n", " ")
    assert (left_out.status, kept.status) == (0, 0)
    assert "the labels alone" not in kept.out
    compared = run("compare", "digits_conv", *words[2:], tmp_path / "d")
    assert compared.status == 0, compared.err
    assert said in compared.out.replace("\n", " ")


def test_the_recipe_of_a_training_from_given_weights_names_those_that_it_leaves_out(
    run, blobs, trained, tmp_path
):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK)
    begun = ("--init", trained)
    assert run(*words, *begun, "--out", tmp_path / "a").status == 0
    words += ("--recipe", tmp_path / "a" / "run.json", "--out")
    said = f"went on from the weights {trained}; here all start anew"
    left_out, kept = run(*words, tmp_path / "b"), run(*words, tmp_path / "c", *begun)
    assert (left_out.status, kept.status) == (0, 0)
    assert f"{said}; give --init to start from some" in left_out.out.replace("\n", " ")
    assert "start anew" not in kept.out
    assert said in run("compare", "digits_conv", *words[2:], tmp_path / "d").out.replace("\n", " ")


def test_a_long_preparation_says_how_far_it_is(monkeypatch, run, blobs, trained, tmp_path):
    monkeypatch.setattr(reporting, "QUIET_SECONDS", -1.0)
    taught = ("--teacher", trained, "--views", 2, "--out", tmp_path / "a")
    done = run("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK, *taught)
    told = re.findall(r"the teacher's logits: ([\d,]+) of ([\d,]+) images", done.out)
    assert told, done.out
    assert told[-1][0] == told[-1][1]


def test_mixed_images_run_the_teacher_in_every_step_and_say_so(run, blobs, trained, tmp_path):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", *QUICK, "--mixup", 0.2, "--distill", "dist")
    done = run(*words, "--teacher", trained, "--out", tmp_path / "a")
    assert done.status == 0, done.err
    assert "note: the teacher runs in every step: the recipe mixes images in pairs" in done.out
    told = json.loads((tmp_path / "a" / "run.json").read_text())["objective"]
    assert (told["loss"], told["views"]) == ("dist", 0)


def test_a_distillation_killed_from_outside_resumes_bit_for_bit(run, blobs, trained, tmp_path):
    whole, folder, epochs = tmp_path / "whole", tmp_path / "killed", 20
    words = ["train", "digits_conv", "--data", f"npz:{blobs}", "--epochs", str(epochs), "--batch-size", "10"]
    words += ["--device", "cpu", "--teacher", str(trained), "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "globalcnn", *words, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline, metrics = time.monotonic() + 120, folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run(*words, folder, "--resume").status == 0
    assert run(*words, whole).status == 0
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--teacher", "/no/such/run"), ("/no/such/run",)),
        (("--distill", "kd"), ("--distill", "there is none: give --teacher")),
        (("--teacher", "TRAINED", "--distill", "kdd"), ("unknown distillation 'kdd'", "'kd'")),
        (("--teacher", "TRAINED", "--temperature", "0"), ("temperature=0.0 must be",)),
        (("--teacher", "TRAINED", "--views", "-1"), ("views=-1",)),
        (("--teacher", "TRAINED", "--teacher-weight", "1.5"), ("weight=1.5", "at most 1")),
        (
            ("--teacher", "TRAINED", "--data", "OTHER"),
            ("the teacher does not fit", "'dark'", "not trained on"),
        ),
        (("--teacher", "TRAINED", "--image-size", "12"), ("was trained on images of 10 x 10",)),
    ],
)
def test_mistakes(run, blobs, trained, tmp_path, words, parts):
    other = tmp_path / "other.npz"
    with np.load(blobs) as arrays:
        np.savez(other, **arrays, classes=np.array(["dark", "grey", "light"]))
    paths = {"TRAINED": trained, "OTHER": f"npz:{other}"}
    given = [paths.get(word, word) for word in words]
    data = () if "--data" in words else ("--data", f"npz:{blobs}")
    refused(run("train", "digits_conv", *data, *QUICK, "--out", tmp_path / "r", *given), *parts)
    assert not (tmp_path / "r").exists()
