"""Two checkouts compared: both sides run the same cells, mistakes are one line."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import before_after, one_side
from benchmarks.pages import ROOT

QUICK = ["--before", str(ROOT), "--quick", "--out", "x"]


def test_every_cell_runs_and_is_named_once():
    settings = json.loads(json.dumps(before_after.worker_settings(before_after.arguments(QUICK))))
    cells = one_side.cells(settings)
    names = [name for name, _ in cells]
    assert len(set(names)) == len(names) == 12
    assert {name.split(":")[0] for name in names} == {"layer", "layer, frozen", "control", "training"}
    for _, build in cells:
        assert one_side.seconds(build(), 0.0) > 0


def test_tables_are_chosen():
    args = before_after.arguments([*QUICK, "--tables", "training"])
    names = [name for name, _ in one_side.cells(before_after.worker_settings(args))]
    assert names
    assert all("step of" in name for name in names)


def test_a_burst_calls_as_often_as_fits():
    calls = []
    spent = one_side.seconds(lambda: calls.append(torch.ones(3)), 0.01)
    assert len(calls) > 10
    assert 0 < spent < 0.01


def test_a_faster_side_is_seen_in_every_round():
    times = {"before": {"layer: a": 2.0, "control: b": 1.0}, "after": {"layer: a": 1.0, "control: b": 1.0}}
    layer, control = before_after.compared([times] * 3)
    assert (layer["ratio"], control["ratio"]) == (0.5, 1.0)
    assert before_after.summary([layer, control]) == {"layer": 0.5, "control": 1.0}


MISTAKES = {
    "no checkout": (["--before", "/nowhere", "--out", "x"], "'/nowhere' is no checkout of the project"),
    "no rounds": ([*QUICK, "--rounds", "0"], "--rounds 0 must be above 0"),
    "no burst": ([*QUICK, "--burst", "0"], "--burst 0.0 must be above 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, tmp_path, monkeypatch, capsys):
    words, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    assert before_after.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_result_is_not_replaced_unless_told(tmp_path, capsys):
    (tmp_path / "before_after.json").write_text("{}")
    assert before_after.main(["--before", str(ROOT), "--out", str(tmp_path)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
