"""The latency of every candidate beside the original: ONNX Runtime at batch 1, PyTorch at batch 64.

PyTorch: the module as it is, in eval and inference mode, without compiling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn.errors import UserError
from globalcnn.files import write_json
from globalcnn.measure import count, latency

from .. import machine
from ..deployed_engines import BURST, latencies_of
from .arms import Arm, Candidate, find_arm
from .choice import choose, speedup
from .original import Original

ORIGINAL = "original"


def latency_file(results: Path, network: str) -> Path:
    """Where the times of a network's candidates are."""
    return results / f"latency-{network}.json"


def measure(
    original: Original,
    arms: Sequence[Arm],
    results: Path,
    *,
    rounds: int,
    seconds: float,
    targets: Sequence[float],
    say: Callable[[str], None],
) -> Path:
    """Time the candidates of each arm together with the original, and write the file; returns its path.

    An arm that is measured again replaces its times; those of other arms stay, if the original is the same. At
    the end the candidates that are taken for `targets` are timed once more, all arms in the same rounds: the
    choice favours times that came out short by chance.
    """
    path = latency_file(results, original.name)
    found = _measured_before(path, original)
    content = {
        "network": original.name,
        "weights": original.weights(),
        **machine.facts(seed=0),
        "arms": found,
    }
    for arm in arms:
        candidates = arm.candidates(original)
        say(f"{arm.name}: {len(candidates)} candidate(s)")
        found[arm.name] = _timed(original, candidates, rounds, seconds)
        write_json(path, content)
    taken = _taken(original, found, targets, say)
    say(f"side by side: {len(taken)} candidate(s)")
    write_json(path, {**content, "side_by_side": _timed(original, taken, rounds, seconds)})
    return path


def _measured_before(path: Path, original: Original) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    arms: dict[str, Any] = content["arms"] if content["weights"] == original.weights() else {}
    return arms


def _taken(
    original: Original, found: Mapping[str, Any], targets: Sequence[float], say: Callable[[str], None]
) -> dict[str, Candidate]:
    """The candidates that the measured arms take, by `label`."""
    taken = {}
    for arm in map(find_arm, found):
        measured, candidates = found[arm.name]["candidates"], arm.candidates(original)
        for target in targets:
            name = choose(measured, target if arm.meets_target else None)
            say(f"{arm.name}, {target:g} times as fast: {name}")
            if name is not None:
                taken[label(arm.name, name)] = candidates[name]
    return taken


def label(arm: str, candidate: str) -> str:
    """How a candidate that is taken is called among those of all arms."""
    return f"{arm}, {candidate}"


def _timed(
    original: Original, candidates: Mapping[str, Candidate], rounds: int, seconds: float
) -> dict[str, Any]:
    """Times of the original, and costs, times and speed-up of each candidate; the machine."""
    before = machine.load_averages()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = {name: c.build().eval() for name, c in candidates.items()}
    models: dict[str, nn.Module] = {ORIGINAL: original.model.eval(), **built}
    times, failures = measured_times(original, models, rounds, seconds)
    found = {}
    for name, candidate in candidates.items():
        cost = count(models[name], original.size)
        found[name] = {
            "settings": dict(candidate.settings),
            "parameters": cost.params,
            "macs": cost.macs,
            **times[name],
            "speedup": speedup(times[ORIGINAL], times[name]),
        }
    return {
        "rounds": rounds,
        "seconds": seconds,
        "load_before": before,
        **machine.facts(seed=0),
        "original": times[ORIGINAL],
        "failures": failures,
        "candidates": found,
    }


def measured_times(
    original: Original, models: Mapping[str, nn.Module], rounds: int, seconds: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Seconds of each model by measure, and why one has none."""
    engines = latencies_of(
        models, original.example(1), engines=("onnxruntime",), rounds=rounds, seconds=seconds, compile=False
    )
    eager = latency(
        models,
        original.example(64),
        runs=rounds,
        warmup=1,
        seconds=seconds,
        burst=min(BURST, seconds / 100),
        least=3,
    )
    times = {
        name: {"onnxruntime_1": engines[name]["onnxruntime"]["seconds"], "pytorch_64": eager[name].median}
        for name in models
    }
    failures = {n: e["onnxruntime"]["failure"] for n, e in engines.items() if e["onnxruntime"]["failure"]}
    return times, failures


def read_times(results: Path, network: str, weights: str) -> dict[str, Any]:
    """What was measured; `UserError` where nothing was of the network with these weights."""
    path = latency_file(results, network)
    if not path.is_file():
        raise UserError(f"{str(path)!r} is not there: measure the candidates first, with --latency")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["weights"] != weights:
        raise UserError(f"{str(path)!r} holds times of other weights: measure them anew, with --latency")
    return content
