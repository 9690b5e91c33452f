"""Times both sides of a cell in rounds: every round runs each variant once, in an order that reverses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from globalcnn.measure import Latency, latency

from .results import Cell, Settings, Side, Timed

Run = Callable[[], Any]
BURST = 0.02  # seconds of a variant in a round: as many calls as fit
LEAST = 3  # rounds, however long they take: there is no median of fewer
Key = tuple[int, int]  # side, variant


@dataclass(frozen=True)
class Variant:
    """A variant of a side: `prepare` builds a callable that is then timed, or raises why it cannot.

    What `prepare` returns may have an attribute `about`, a line on what it is. competes: whether it may be
    its side's fastest (False for what is shown for comparison alone).
    """

    name: str
    prepare: Callable[[], Run]
    competes: bool = True


class NotHere(Exception):
    """A variant does not apply, for a reason that is recorded."""


def timed_in_rounds(
    name: str,
    ours: tuple[str, list[Variant]],
    theirs: tuple[str, list[Variant]],
    settings: Settings,
    *,
    images: int,
    facts: Mapping[str, Any] | None = None,
) -> Cell:
    """Prepare every variant of both sides, run each once, then time all that work in rounds.

    A variant that fails is recorded with the reason. As many rounds as `settings.rounds`, fewer after
    `settings.seconds`, but `LEAST` at least; two more before them are not timed where that is short. A
    variant runs for `BURST` at least in each round.
    """
    sides = (ours, theirs)
    runs, failures, round_seconds = _prepared(sides, settings)
    times = _times(runs, settings, round_seconds, images)
    ours_timed, theirs_timed = (
        Side(side, tuple(_timed(v, (i, j), times, failures, runs) for j, v in enumerate(variants)))
        for i, (side, variants) in enumerate(sides)
    )
    return Cell(name, ours_timed, theirs_timed, images=images, facts=dict(facts or {}))


def _prepared(
    sides: tuple[tuple[str, list[Variant]], ...], settings: Settings
) -> tuple[dict[Key, Run], dict[Key, str], float]:
    """What can run, why the rest cannot, and about how long one round takes."""
    runs: dict[Key, Run] = {}
    failures: dict[Key, str] = {}
    round_seconds = 0.0
    short = True
    for i, (_, variants) in enumerate(sides):
        for j, variant in enumerate(variants):
            try:
                run = variant.prepare()
                seconds = _seconds(run)  # compiles, and fills caches
                if i == j == 0:
                    short = seconds < settings.seconds / 20
                if short:  # once more, now without what the first call alone has to do
                    seconds = _seconds(run)
                round_seconds += seconds
                runs[i, j] = run
            except Exception as error:  # recorded, so that one variant does not stop a long benchmark
                failures[i, j] = reason(error)
    return runs, failures, round_seconds


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _times(
    runs: Mapping[Key, Run], settings: Settings, round_seconds: float, images: int
) -> dict[Key, Latency]:
    if not runs:
        return {}
    candidates = {str(key): outside_inference(run) for key, run in runs.items()}
    warmup = 2 if 10 * round_seconds < settings.seconds else 0
    found = latency(
        candidates,
        torch.empty(images),
        runs=settings.rounds,
        warmup=warmup,
        seconds=settings.seconds,
        burst=0.0 if settings.quick else min(BURST, settings.seconds / 100),
        least=1 if settings.quick else min(LEAST, settings.rounds),
    )
    return {key: found[str(key)] for key in runs}


def _timed(
    variant: Variant,
    key: Key,
    times: Mapping[Key, Latency],
    failures: Mapping[Key, str],
    runs: Mapping[Key, Run],
) -> Timed:
    about = getattr(runs.get(key), "about", "")
    return Timed(variant.name, times.get(key), failures.get(key, ""), about, variant.competes)


def outside_inference(run: Run) -> Callable[[Any], Any]:
    """`latency` calls in inference mode; a run chooses its mode itself, a training step needs gradients."""

    def call(_: Any) -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return run()

    return call


def reason(error: BaseException) -> str:
    """One line of an error."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, NotHere) else f"{type(error).__name__}: {text}"[:200]
