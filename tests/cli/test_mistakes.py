"""A mistake in what was given ends in one line on standard error and exit status 2; nothing is lost."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from globalcnn.cli import main as main_module
from globalcnn.errors import UserError
from globalcnn.train import TrainingDiverged


def refused(done, *parts) -> None:
    assert done.status == 2
    assert "Traceback" not in done.err + done.out
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith("globalcnn: error: ")
    for part in parts:
        assert part in done.err


def test_unknown_command(run):
    refused(run("trian"), "unknown command 'trian'", "'train'")


@pytest.mark.parametrize("command", ["demo", "list", "info", "train", "eval", "compare", "env"])
def test_unknown_options_and_missing_arguments(run, command):
    needed = {"info": ["digits_conv"], "train": ["digits_conv"], "eval": ["run"]}.get(command, [])
    if needed:
        missing = run(command)
        assert missing.status == 2
        assert "required" in (missing.out + missing.err).lower()
    done = run(command, *needed, "--no-such-option")
    assert done.status == 2
    assert "no-such-option" in done.out + done.err
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize("words", [("info", "resnet_globl_cifar"), ("train", "resnet_globl_cifar")])
def test_unknown_model_with_near_names(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run(*words), "unknown model 'resnet_globl_cifar'", "'resnet_global_cifar'", "globalcnn list")
    assert not list(tmp_path.iterdir())


def test_nothing_matches(run):
    refused(run("list", "xqzw"), "no model matches 'xqzw'")
    refused(run("list", "--family", "resnets"), "unknown family 'resnets'", "'resnet'")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (("--data", "cifar11"), ("unknown", "'cifar10'")),
        (("--data", "cifar10"), ("--data-dir",)),
        (("--data", "mnist", "--data-dir", "/no/such/folder"), ("/no/such/folder",)),
        (("--data", "npz:/no/file.npz"), ("/no/file.npz",)),
        (("--data", "npz:"), ("npz:",)),
        (("--data", "folder:/no/such"), ("/no/such",)),
        (("--data", "wds:/no/such"), ("/no/such",)),
        (("--data", "wds:/no/such/train-*.tar"), ("/no/such/train-*.tar",)),
        (("--shard-images", "5", "5"), ("shard_images=(5, 5)", "wds:PATH")),
    ],
)
def test_missing_data(run, data, parts, tmp_path):
    refused(run("train", "digits_conv", *data, "--out", tmp_path / "r"), *parts)
    assert not (tmp_path / "r").exists()


def test_damaged_data(run, blobs, tmp_path):
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(blobs.read_bytes()[:900])
    refused(run("train", "digits_conv", "--data", f"npz:{damaged}"), str(damaged))
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}, {}], dtype=object))
    refused(run("train", "digits_conv", "--data", f"npz:{tmp_path / 'objects.npz'}"), "objects.npz")
    (tmp_path / "empty").mkdir()
    refused(run("train", "digits_conv", "--data", f"folder:{tmp_path / 'empty'}"), "empty")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--batch-size", "0"), ("batch_size=0", "at least 1")),
        (("--batch-size", "33", "--mixup", "0.2"), ("batch_size=33 is odd", "even")),
        (("--epochs", "0"), ("epochs=0",)),
        (("--lr", "-1"), ("lr=-1.0",)),
        (("--recipe", "moden"), ("unknown recipe 'moden'", "'modern'")),
        (("--seed", "-1"), ("seed=-1",)),
        (("--device", "tpu"), ("device='tpu'",)),
        (("--num-classes", "2"), ("it has 2 classes and the data 3",)),
        (("--in-chans", "3"), ("it reads 3 channels and the data has 1",)),
        (("--validation", "0.001"), ("validation",)),
        (("--schedule", "stepp"), ("unknown schedule 'stepp'",)),
        (("--rand-augment", "m9"), ("rand_augment='m9'", "'rand-m9-mstd0.5'")),
        (("--random-erasing", "2"), ("random_erasing=2.0", "from 0 to 1")),
        (("--lr-noise", "0.9", "0.4"), ("lr_noise=(0.9, 0.4)", "rising")),
    ],
)
def test_settings_of_a_training(run, blobs, tmp_path, words, parts):
    out = tmp_path / "r"
    refused(run("train", "digits_conv", "--data", f"npz:{blobs}", "--out", out, *words), *parts)
    assert not out.exists()


def test_an_odd_batch_size_is_fine_without_pairs(run, blobs, tmp_path):
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", "--epochs", 1, "--device", "cpu")
    assert run(*words, "--batch-size", 7, "--out", tmp_path / "r").status == 0


def test_an_existing_run_folder(run, blobs, trained):
    before = (trained / "last.safetensors").read_bytes()
    words = ("train", "digits_conv", "--data", f"npz:{blobs}", "--out", trained, "--device", "cpu")
    refused(run(*words), "--resume", "--overwrite", str(trained))
    refused(run(*words, "--resume", "--epochs", 5), "epochs was 2 and is now 5")
    assert (trained / "last.safetensors").read_bytes() == before


def test_checkpoints_that_do_not_fit(run, trained, blobs, tmp_path):
    data = ("--data", f"npz:{blobs}", "--device", "cpu")
    refused(run("eval", tmp_path / "none", *data), "there is no checkpoint")
    digits = ("--data", "digits", "--device", "cpu")
    refused(run("eval", trained, *digits), "'3', '4', '5', '6', '7', '8', '9', which 'digits_conv' was not")
    refused(run("eval", trained, *data, "--model", "digits_global"), "'digits_conv', not of 'digits_global'")
    refused(run("eval", trained / "state.pt", *data), "a training state of globalcnn, not a file of")
    refused(run("eval", trained / "run.json", *data), "not a whole safetensors file")
    short = tmp_path / "short.safetensors"
    short.write_bytes((trained / "last.safetensors").read_bytes()[:-20])
    refused(run("eval", short, *data), "truncated")
    code = tmp_path / "code.pt"
    code.write_bytes(pickle.dumps(print))
    refused(run("eval", code, *data), "pickle")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(1)}, foreign)
    refused(run("eval", foreign, *data), "does not say which model")


def test_eval_keeps_what_is_there(run, trained, blobs, tmp_path):
    (tmp_path / "e.json").write_text("mine")
    refused(run("eval", trained, "--data", f"npz:{blobs}", "--json", tmp_path / "e.json"), "--overwrite")
    assert (tmp_path / "e.json").read_text() == "mine"


def test_compare_mistakes(run, blobs, tmp_path):
    data = ("--data", f"npz:{blobs}", "--out", tmp_path / "c")
    refused(run("compare", *data), "at least one network")
    refused(run("compare", "digits_conv", "digits_conv", *data), "each network once")
    refused(run("compare", "digits_conv", *data, "--confusion", 0, 9), "two different classes of 0..2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("hello")
    for word in ("--overwrite", "--resume"):
        refused(run("compare", "digits_conv", *data[:2], "--out", tmp_path / "mine", word), "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "hello"


def test_demo_keeps_what_is_there(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(run("demo", "--out", tmp_path), "is not empty", "--overwrite")
    refused(run("demo", "--out", tmp_path / "d", "--epochs", 0, 1), "--epochs 0 1")


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (UserError("this is wrong"), 2, "this is wrong"),
        (TrainingDiverged("the loss became nan"), 1, "the loss became nan"),
        (KeyboardInterrupt(), 130, "--resume"),
        (MemoryError(), 2, "lower --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 2, "lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "lower --batch-size"),
    ],
)
def test_what_an_error_ends_in(run, monkeypatch, error, status, part):
    def fail(words):
        raise error

    monkeypatch.setattr(main_module, "_dispatch", fail)
    done = run("env")
    assert done.status == status
    assert part in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_defect_is_not_hidden(run, monkeypatch):
    def fail(words):
        raise ZeroDivisionError

    monkeypatch.setattr(main_module, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        run("env")


def test_debug_shows_the_traceback(run):
    with pytest.raises(UserError):
        run("info", "nothing_like_it", "--debug")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train", "digits_conv", "--seed", "x"), "--seed: 'x' is not a whole number"),
        (("train", "digits_conv", "--lr", "abc"), "--lr abc: it takes a number"),
        (("train", "digits_conv", "--milestones", "1", "x"), "--milestones 1 x: it takes whole numbers"),
        (("train", "digits_conv", "extra", "words"), "extra, words"),
        (("train", "digits_conv", "--lr", "ab'c"), "--lr ab'c: it takes a number"),
        (
            ("train", "digits_conv", "--image-size", "3", "2", "1"),
            "--image-size 3 2 1: it takes one number, or",
        ),
        (("train", "digits_conv", "--image-size"), "--image-size has no value: it takes one number, or"),
        (("train", "digits_conv", "--out"), "--out lacks a value"),
        (("demo", "--epochs", "a", "b"), "--epochs a b: these are not of the kind"),
        (("train",), "required and not given: MODEL"),
        (("convert-checkpoint",), "required and not given: FILE, --model STR, --out PATH"),
        (("compare", "digits_conv", "--seeds", "a"), "--seeds a: not all of these are of the kind"),
    ],
)
def test_words_that_cannot_be_read_are_one_line(run, words, part):
    refused(run(*words), part, f"globalcnn {words[0]} --help")


def in_a_fork(words, prepare):
    """(status, standard error) of a command in a fork of this process, whose output `prepare` spoils."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.dup2(writing, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            prepare()
            status = main_module.main(words)
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def closed():
    os.close(1)
    sys.stdout = None


def full():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


@pytest.mark.parametrize(
    ("prepare", "part"), [(closed, "standard output is closed"), (full, "No space left on device")]
)
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written(prepare, part, words):
    status, said = in_a_fork(words, prepare)
    assert status == 2
    assert part in said
    assert len(said.splitlines()) == 1, said


def test_a_reader_who_has_gone():
    """In a separate process, since the interpreter's end must be silent too."""
    script = f"{sys.executable} -m globalcnn list --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_of_the_system_are_one_line(run, monkeypatch):
    def fail(words):
        raise PermissionError(errno.EACCES, "Permission denied", "/some/file")

    monkeypatch.setattr(main_module, "_dispatch", fail)
    refused(run("env"), "'/some/file'", "Permission denied")


def test_warnings_are_lines_and_others_are_left_out(run, monkeypatch):
    def warn(words):
        warnings.warn_explicit("told\nby us", UserWarning, main_module.__file__, 1)
        warnings.warn_explicit("told by others", UserWarning, torch.__file__, 1)
        return 0

    monkeypatch.setattr(main_module, "_dispatch", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("env").err == "globalcnn: warning: told by us\n"
