"""Which candidate of an arm is taken for a target, from measured times alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

MEASURES: Final = ("onnxruntime_1", "pytorch_64")  # seconds of a batch: engine, images
TOLERANCE: Final = 0.05  # of the target


def speedup(original: Mapping[str, Any], candidate: Mapping[str, Any]) -> float | None:
    """How many times as fast: the geometric mean over the measures; None where one failed.

    >>> a, b = {"onnxruntime_1": 2.0, "pytorch_64": 4.0}, {"onnxruntime_1": 2.0, "pytorch_64": 1.0}
    >>> speedup(a, b)
    2.0
    """
    if any(times.get(key) is None for times in (original, candidate) for key in MEASURES):
        return None
    return float(prod(original[key] / candidate[key] for key in MEASURES) ** (1 / len(MEASURES)))


def choose(candidates: Mapping[str, Mapping[str, Any]], target: float | None) -> str | None:
    """The least condensed candidate whose speed-up reaches the target less 5 %; None if none does.

    Least condensed: most multiply-adds; of equals, most parameters. target: None takes the first.

    >>> a = {"speedup": 1.96, "macs": 9, "parameters": 3}
    >>> b = {"speedup": 2.5, "macs": 8, "parameters": 3}
    >>> choose({"b": b, "a": a}, 2.0), choose({"b": b, "a": a}, 2.1), choose({"a": a}, 3.0)
    ('a', 'b', None)
    """
    if target is None:
        return next(iter(candidates), None)
    fast = {
        name: c
        for name, c in candidates.items()
        if c["speedup"] is not None and c["speedup"] >= (1 - TOLERANCE) * target
    }
    return max(fast, key=lambda name: (fast[name]["macs"], fast[name]["parameters"]), default=None)
