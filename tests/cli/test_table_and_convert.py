"""`table` prints every row; `convert-checkpoint` reads the authors' files and nothing that could run code."""

from __future__ import annotations

import json

import pytest
import torch

import globalcnn
from globalcnn.models import load_with_card
from globalcnn.reproduce import table as published
from globalcnn.reproduce.authors import authors_names
from globalcnn.reproduce.rows import published_rows


@pytest.fixture
def few(monkeypatch):
    rows = tuple(r for r in published_rows() if r.model in ("digits_global", "neural_ode_mnist"))
    monkeypatch.setattr(published, "published_rows", lambda: rows)


def test_table(run, few, tmp_path):
    done = run("table", "--results", tmp_path)
    assert done.status == 0, done.err
    for part in (
        "mnist-backbones",
        "digits_global",
        "524",
        "95.03",
        "13.82M outside the implicit layers",
        "x 32",
    ):
        assert part in done.out
    rows = json.loads(run("table", "--json", "--results", tmp_path).out)
    assert {r["model"] for r in rows} == {"digits_global", "neural_ode_mnist"}
    wanted = {
        *("table", "row", "dataset", "model", "num_classes", "params", "macs", "macs_paper", "macs_products"),
        *("published", "accuracy", "note"),
    }
    assert all(wanted <= set(row) for row in rows)
    (tmp_path / "file").write_text("")
    assert run("table", "--results", tmp_path / "file").status == 2


def test_a_folder_of_results_that_is_missing(run, few, tmp_path, monkeypatch):
    """Where one was named that is a mistake, where none was named there are counts alone."""
    monkeypatch.chdir(tmp_path)
    done = run("table", "--results", tmp_path / "none")
    assert done.status == 2
    assert f"--results '{tmp_path / 'none'}' is not a folder" in done.err
    rows = json.loads(run("table", "--json").out)
    assert [r["accuracy"] for r in rows] == [None, None]
    (tmp_path / "results").mkdir()
    summary = {
        "model": {"model": "neural_ode_mnist"}, "data": {"name": "mnist"}, "epochs": 1, "test_accuracy": 0.9,
    }  # fmt: skip
    (tmp_path / "results" / "a.json").write_text(json.dumps(summary))
    rows = json.loads(run("table", "--json").out)
    assert {r["model"]: r["accuracy"] for r in rows} == {"neural_ode_mnist": 90.0, "digits_global": None}


@pytest.mark.slow
def test_the_whole_table(run, tmp_path):
    """49 rows in the order of the paper, reconstructions named; spelt as the file spells them."""
    rows = json.loads(run("table", "--json", "--results", tmp_path).out)
    named = [(r.table, r.row, r.dataset, r.model, r.num_classes, r.published) for r in published_rows()]
    keys = ("table", "row", "dataset", "model", "num_classes", "published")
    assert [tuple(row[key] for key in keys) for row in rows] == named
    assert len(rows) == 49
    text = run("table", "--results", tmp_path).out
    for name in ("neupde_mnist", "neupde_cifar", "mdeq_cifar"):
        assert f"{name} (reconstruction)" in text
    assert "mdeq_small (reconstruction)" not in text


@pytest.fixture
def theirs(tmp_path):
    """A checkpoint as the authors' code writes it, and the network whose weights it has."""
    model = globalcnn.create_model("resnet_global_tiny_cifar", num_classes=7)
    names = authors_names(model)
    state = {"module." + names[k]: v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth", model


def test_convert(run, theirs, tmp_path):
    path, model = theirs
    out = tmp_path / "ours.safetensors"
    words = (
        "convert-checkpoint",
        path,
        "--model",
        "resnet_global_tiny_cifar",
        "--num-classes",
        7,
        "--out",
        out,
    )
    done = run(*words)
    assert done.status == 0, done.err
    again, description = load_with_card(out)
    assert description.num_classes == 7
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))
    assert run(*words).status == 2
    assert run(*words, "--overwrite").status == 0


def test_convert_mistakes(run, theirs, tmp_path):
    path, _ = theirs
    out = ("--out", tmp_path / "o.safetensors")
    for words, part in (
        ((path, "--model", "resnet_global_cifar", *out), "146 misshapen"),
        ((path, "--model", "resnet_global_tiny_cifar", *out), "fc.weight has shape (7, 16), not (10, 16)"),
        ((path, "--model", "resnet_globl", *out), "unknown model"),
        ((path, "--model", "resnet18", *out), "model of timm"),
        ((path, "--model", "resnet_global_tiny_cifar", "--out", tmp_path / "o.pt"), ".safetensors"),
        ((tmp_path / "none.pth", "--model", "resnet_global_tiny_cifar", *out), "there is no checkpoint"),
    ):
        done = run("convert-checkpoint", *words)
        assert done.status == 2
        assert part in done.err
    bad = tmp_path / "bad.pth"
    torch.save({"model": torch.nn.Linear(2, 2)}, bad)
    done = run("convert-checkpoint", bad, "--model", "resnet_global_tiny_cifar", *out)
    assert done.status == 2
    assert "more than tensors" in done.err
    bad.write_bytes(path.read_bytes()[:500])
    done = run("convert-checkpoint", bad, "--model", "resnet_global_tiny_cifar", *out)
    assert done.status == 2
    assert "damaged" in done.err
    assert not (tmp_path / "o.safetensors").exists()
