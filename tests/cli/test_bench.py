"""`globalcnn bench`: a quick run of every table leaves figures, pictures and reasons."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import machine
from benchmarks.tables import TABLES


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
                assert failed <= {"left out of a quick run"} or all("compiled" in f for f in failed)
    memory = facts["tables"]["memory"]["rows"]
    assert all(0 < row["kept"] <= row["peak"] for row in memory)
    ode = facts["tables"]["solvers"]["cells"][0]
    assert ode["facts"]["theirs_evaluations"] > 0
    assert "evaluations of its function" in done.out


def test_chosen_tables_threads_and_overwriting(run, tmp_path):
    threads = torch.get_num_threads()
    words = ("bench", "--quick", "--tables", "layer", "memory", "--out", tmp_path / "b")
    assert run(*words, "--threads", 2).status == 0
    assert torch.get_num_threads() == threads
    facts = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert list(facts["tables"]) == ["layer", "memory"]
    assert facts["environment"]["threads"] == 2
    again = run(*words)
    assert (again.status, "--overwrite" in again.err) == (2, True)
    assert run(*words, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tables", "layers"), "unknown table 'layers'; did you mean 'layer'"),
        (("--rounds", "0"), "--rounds 0 must be"),
        (("--seconds", "-1"), "--seconds -1.0 must be"),
        (("--seconds", "nan"), "--seconds nan must be"),
        (("--threads", "0"), "--threads 0 must be"),
    ],
)
def test_mistakes(run, tmp_path, words, said):
    done = run("bench", "--quick", "--out", tmp_path / "b", *words)
    assert done.status == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "b").exists()
