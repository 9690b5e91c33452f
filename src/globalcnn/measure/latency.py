"""Latency of networks, measured in interleaved rounds so that disturbances affect all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..graph import eval_mode


@dataclass(frozen=True)
class Latency:
    """Times of one candidate in seconds per batch: the median and the quartiles of `runs` timed rounds."""

    median: float
    lower: float
    upper: float
    runs: int
    batch_size: int

    @property
    def per_image(self) -> float:
        """Median seconds per image."""
        return self.median / self.batch_size


def latency(
    candidates: Mapping[str, Callable[[Tensor], Any]],
    example: Tensor,
    *,
    runs: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    burst: float = 0.0,
    settle: float = 0.0,
    least: int = 1,
) -> dict[str, Latency]:
    """Time each of `candidates` on the batch `example` (N, ...), all in one process, in rounds.

    Every round calls each candidate, in an order that reverses from round to round, so that a slow phase of
    the machine falls on all of them. It calls once; with `burst`, for so many seconds, and the time is the
    mean: a short single call would run with caches that hold the data of the candidate called before, unlike
    a network in use. With `settle`, calls for so many seconds come before each, not timed: the
    threads of a library called before may hold the cores for a while. `warmup` rounds are not timed; then
    follow `runs` rounds, fewer if `seconds` have passed before, but at least `least`. Calls are made in
    inference mode, modules in eval mode (their flags and buffers are restored); on an accelerator the clock
    waits for it. Defaults: 30 rounds give steady quartiles; 3 rounds fill caches and let libraries choose
    their algorithms; no bursts, no settling; one round at least.

    Raises:
        UserError: no candidates, an empty batch, `runs` < 1, `warmup` < 0, `seconds` not positive, `burst` <
            0, `settle` < 0 or `least` < 1.
        UserTypeError: a candidate is not callable or `example` is not a tensor.

    >>> import torch
    >>> times = latency({"relu": torch.relu, "exp": torch.exp}, torch.zeros(4, 3), runs=5)
    >>> sorted(times), times["exp"].runs, times["exp"].batch_size
    (['exp', 'relu'], 5, 4)
    """
    _check(candidates, example, runs, warmup, seconds, burst, settle, least)
    modules = [c for c in candidates.values() if isinstance(c, nn.Module)]
    with eval_mode(*modules), torch.inference_mode():
        for _ in range(warmup):
            _round(candidates, example, reverse=False)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        start = time.perf_counter()
        for i in range(runs):
            spent = _round(candidates, example, reverse=i % 2 == 1, burst=burst, settle=settle)
            for name, time_of_call in spent.items():
                times[name].append(time_of_call)
            if seconds is not None and i + 1 >= least and time.perf_counter() - start >= seconds:
                break
    return {name: _summary(spent, example.shape[0]) for name, spent in times.items()}


def _check(
    candidates: Any,
    example: Any,
    runs: Any,
    warmup: Any,
    seconds: Any,
    burst: Any,
    settle: Any,
    least: Any,
) -> None:
    if not isinstance(candidates, Mapping) or not candidates:
        raise UserError(
            f'candidates must map names to callables, such as {{"resnet": model}}, got {candidates!r}'
        )
    for name, candidate in candidates.items():
        if not callable(candidate):
            raise UserTypeError(f"candidate {name!r} must be callable, got {type(candidate).__name__}")
    if not isinstance(example, Tensor):
        raise UserTypeError(f"example must be a tensor (N, ...), got {type(example).__name__}")
    if example.ndim < 1 or example.shape[0] < 1:
        raise UserError(f"example must hold a batch of one or more, got shape {tuple(example.shape)}")
    for argument, value, lowest in (("runs", runs, 1), ("warmup", warmup, 0), ("least", least, 1)):
        if type(value) is not int or value < lowest:
            raise UserError(f"{argument} must be an integer of {lowest} or more, got {value!r}")
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
        raise UserError(f"seconds must be a positive number, or None for no limit, got {seconds!r}")
    for argument, value, none in (("burst", burst, "single calls"), ("settle", settle, "none")):
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise UserError(f"{argument} must be a number of seconds, 0 for {none}, got {value!r}")


def _round(
    candidates: Mapping[str, Callable[[Tensor], Any]],
    example: Tensor,
    *,
    reverse: bool,
    burst: float = 0.0,
    settle: float = 0.0,
) -> dict[str, float]:
    """One round; seconds of a call by name."""
    names = list(candidates)
    spent = {}
    for name in reversed(names) if reverse else names:
        if settle:
            _calls(candidates[name], example, settle)
        spent[name] = _calls(candidates[name], example, burst)
    return spent


def _calls(candidate: Callable[[Tensor], Any], example: Tensor, seconds: float) -> float:
    """Call for so many seconds, once at least; the seconds of a call, as a mean."""
    _wait_for(example.device)
    start = time.perf_counter()
    passed, calls = 0.0, 0
    while not calls or passed < seconds:
        candidate(example)
        _wait_for(example.device)
        calls += 1
        passed = time.perf_counter() - start
    return passed / calls


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(spent: list[float], batch_size: int) -> Latency:
    lower, median, upper = quantiles(spent, n=4, method="inclusive") if len(spent) > 1 else spent * 3
    return Latency(median=median, lower=lower, upper=upper, runs=len(spent), batch_size=batch_size)
