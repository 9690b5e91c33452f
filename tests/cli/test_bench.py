"""`globalcnn bench`: a quick run of every table leaves figures, pictures and reasons."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import machine
from benchmarks.tables import TABLES
from globalcnn.cli import bench
from globalcnn.errors import UserError


@pytest.mark.slow
def test_a_quick_run_of_every_table(run, tmp_path, monkeypatch):
    pytest.importorskip("torchdiffeq")
    monkeypatch.setattr(machine, "load_averages", lambda: [64.0, 1.0, 1.0])
    done = run("bench", "--quick", "--out", tmp_path / "b", "--rounds", 1)
    assert done.status == 0, done.err
    assert "warning: other work runs on this machine" in done.out
    facts = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert list(facts["tables"]) == list(TABLES)
    assert facts["quick"] is True
    assert facts["loaded"] is True
    assert facts["load_before"] == [64.0, 1.0, 1.0]
    assert facts["settings"] == {"rounds": 1, "seconds": 1.0, "quick": True}
    assert {"torch", "cpu", "threads"} <= set(facts["environment"])
    assert facts["native"]
    for word, table in facts["tables"].items():
        assert (tmp_path / "b" / f"{word}.png").stat().st_size > 5000
        assert table["title"] in done.out
        if table["kind"] == "comparison":
            assert table["cells"]
            for cell in table["cells"]:
                assert cell["failure"] == "", cell
                assert cell["ratio"] > 0
                failed = {f["failure"] for key in ("ours", "theirs") for f in cell[key]["variants"]} - {""}
                left_out = {"left out of a quick run", "UserError: it has no Global layers"}
                assert failed <= left_out or all("compiled" in f for f in failed)
    memory = facts["tables"]["memory"]["rows"]
    assert all(0 < row["kept"] <= row["peak"] for row in memory)
    ode = facts["tables"]["solvers"]["cells"][0]
    assert ode["facts"]["theirs_evaluations"] > 0
    assert "evaluations of its function" in done.out


def test_chosen_tables_threads_and_overwriting(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    threads = torch.get_num_threads()
    words = ("bench", "--quick", "--tables", "memory", "--out", tmp_path / "b")
    done = run(*words, "--threads", 2)
    assert done.status == 0
    assert torch.get_num_threads() == threads
    facts = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert list(facts["tables"]) == ["memory"]
    assert facts["environment"]["threads"] == 2
    assert facts["binding"] == "threads are bound to cores: OMP_PROC_BIND=true"
    assert facts["binding"] in done.out
    again = run(*words)
    assert (again.status, "--overwrite" in again.err) == (2, True)


def test_networks_that_are_named(run, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=10, in_chans=3):\n"
        "    layers = nn.Conv2d(in_chans, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 8, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    mine, out = f"{tmp_path / 'my_net.py'}:build", tmp_path / "b"
    words = ("bench", "--quick", "--models", mine, "digits_global", "--in-chans", 1, "--image-size", 8, 10)
    done = run(*words, "--batches", 2, "--out", out)
    assert done.status == 0, done.err
    facts = json.loads((out / "bench.json").read_text())
    assert list(facts["tables"]) == ["models"]
    assert facts["binding"] == "threads are not bound to cores"
    (cell,) = facts["tables"]["models"]["cells"]
    assert cell["failure"] == ""
    assert (cell["ours"]["name"], cell["theirs"]["name"]) == ("my_net.py:build", "digits_global")
    assert cell["facts"]["input"] == [1, 8, 10]
    assert cell["facts"]["ours_macs"] == 4 * 9 * 6 * 8 + 10 * 4 * 6 * 8
    assert (out / "models.png").stat().st_size > 5000


MISTAKES = {
    "table": (("--tables", "layers"), "unknown table 'layers'; did you mean 'layer'"),
    "rounds": (("--rounds", "0"), "--rounds 0 must be"),
    "seconds": (("--seconds", "-1"), "--seconds -1.0 must be"),
    "seconds, not a number": (("--seconds", "nan"), "--seconds nan must be"),
    "threads": (("--threads", "0"), "--threads 0 must be"),
    "one network": (("--models", "digits_conv"), "name two networks or more"),
    "unknown network": (("--models", "digits_conv", "digits_con"), "did you mean 'digits_conv'"),
    "batch": (("--models", "digits_conv", "digits_global", "--batches", "0"), "--batches 0: give numbers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(run, tmp_path, name):
    words, said = MISTAKES[name]
    done = run("bench", "--quick", "--out", tmp_path / "b", *words)
    assert done.status == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_without_a_checkout_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"not part of the installed package.*git clone"):
        bench.find_checkout(tmp_path / "site-packages", tmp_path)


def test_the_checkout_beside_the_library_comes_before_the_current_folder(tmp_path):
    for name in ("beside", "here"):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
        (tmp_path / name / "benchmarks" / "command.py").touch()
        (tmp_path / name / "src" / "globalcnn").mkdir(parents=True)
    assert bench.find_checkout(tmp_path / "beside", tmp_path / "here") == tmp_path / "beside"
    assert bench.find_checkout(tmp_path / "installed", tmp_path / "here") == tmp_path / "here"


def test_another_package_of_that_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(UserError, match="another package named benchmarks"):
        bench.imported(tmp_path)
