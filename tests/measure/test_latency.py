"""Latency: what is called when, and how it is summed up; never how long anything takes."""

import math
import sys
from itertools import count as counting
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from globalcnn.errors import UserError, UserTypeError
from globalcnn.measure import latency
from globalcnn.measure.latency import _summary

EXAMPLE = torch.zeros(4, 3)


def test_candidates_take_turns_and_the_order_reverses():
    calls = []
    candidates = {name: lambda x, name=name: calls.append(name) for name in "abc"}
    latency(candidates, EXAMPLE, runs=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"


def test_results_are_named_in_order_and_know_their_batch():
    times = latency({"b": torch.relu, "a": torch.exp}, EXAMPLE, runs=5)
    assert list(times) == ["b", "a"]
    for t in times.values():
        assert 0 < t.lower <= t.median <= t.upper
        assert (t.runs, t.batch_size) == (5, 4)
        assert t.per_image == t.median / 4


def test_medians_and_quartiles():
    t = _summary([5.0, 1.0, 2.0, 4.0, 3.0], 2)
    assert (t.lower, t.median, t.upper, t.runs) == (2.0, 3.0, 4.0, 5)
    once = _summary([7.0], 1)
    assert (once.lower, once.median, once.upper) == (7.0, 7.0, 7.0)


def test_a_time_limit_ends_the_rounds_after_at_least_one(monkeypatch):
    ticks = counting()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(sys.modules["globalcnn.measure.latency"], "time", clock)
    times = latency({"a": torch.relu}, EXAMPLE, runs=1000, warmup=0, seconds=7.5)
    # the start is one tick; a round is two ticks and the look at the limit one
    assert times["a"].runs == 3
    assert times["a"].median == 1.0
    assert latency({"a": torch.relu}, EXAMPLE, seconds=1e-9)["a"].runs == 1


def test_not_less_than_so_many_rounds():
    assert latency({"a": torch.relu}, EXAMPLE, seconds=1e-9, least=4)["a"].runs == 4
    assert latency({"a": torch.relu}, EXAMPLE, seconds=1e-9, least=4, runs=2)["a"].runs == 2


def test_a_turn_of_calls_for_so_many_seconds(monkeypatch):
    now = [0.0]

    def slow(x):
        now[0] += 0.5

    monkeypatch.setattr(
        sys.modules["globalcnn.measure.latency"], "time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    calls = []
    other = lambda x: (calls.append(1), slow(x))  # noqa: E731
    times = latency({"a": slow, "b": other}, EXAMPLE, runs=2, warmup=1, burst=1.2)
    assert len(calls) == 1 + 2 * 3  # the warm-up is one call
    assert (times["a"].median, times["a"].runs) == (0.5, 2)


def test_calls_that_settle_are_not_timed(monkeypatch):
    now, calls = [0.0], []

    def faster_and_faster(x):
        calls.append(1)
        now[0] += 1.0 / len(calls)

    monkeypatch.setattr(
        sys.modules["globalcnn.measure.latency"], "time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    times = latency({"a": faster_and_faster}, EXAMPLE, runs=1, warmup=0, settle=1.2)
    assert len(calls) == 3  # 1 + 1/2 seconds settle, the third call is timed
    assert times["a"].median == pytest.approx(1 / 3)


def test_modules_run_in_eval_and_inference_mode_and_are_restored():
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_inference_mode_enabled()))
            return x

    model = Watched()
    latency({"model": model}, EXAMPLE, runs=2, warmup=1)
    assert seen == [(False, True)] * 3
    assert model.training
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"candidates": {}}, UserError, "candidates must map names"),
        ({"candidates": [torch.relu]}, UserError, "candidates must map names"),
        ({"candidates": {"a": 3}}, UserTypeError, "candidate 'a' must be callable, got int"),
        ({"example": [1.0]}, UserTypeError, "example must be a tensor"),
        ({"example": torch.zeros(0, 3)}, UserError, r"batch of one or more, got shape \(0, 3\)"),
        ({"example": torch.zeros(())}, UserError, r"got shape \(\)"),
        ({"runs": 0}, UserError, "runs must be an integer of 1 or more, got 0"),
        ({"runs": 2.0}, UserError, "runs"),
        ({"warmup": -1}, UserError, "warmup must be an integer of 0 or more, got -1"),
        ({"seconds": 0}, UserError, "seconds must be a positive number"),
        ({"seconds": math.nan}, UserError, "seconds"),
        ({"seconds": "1"}, UserError, "seconds"),
        ({"burst": -1}, UserError, "burst must be a number of seconds, 0 for single calls, got -1"),
        ({"burst": math.nan}, UserError, "burst"),
        ({"least": 0}, UserError, "least must be an integer of 1 or more, got 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    given = {"candidates": {"a": torch.relu}, "example": EXAMPLE} | arguments
    with pytest.raises(error, match=message):
        latency(given.pop("candidates"), given.pop("example"), **given)
