"""Runs both sides of a cell in turn, in all their forms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from globalcnn.measure import Latency, latency
from globalcnn.ops import backends

from .results import Cell, Settings, Side, Timed

Run = Callable[[], Any]
BURST = 0.02  # seconds of a turn: as many calls as fit
LEAST = 3  # rounds, however long they take: a median of one is none


@dataclass(frozen=True)
class Form:
    """One way to run a side: `prepare` builds what is then called again and again, or raises why it cannot.

    What `prepare` returns may have an attribute `about`, a line on what it is.
    """

    name: str
    prepare: Callable[[], Run]
    competes: bool = True


class NotHere(Exception):
    """A form does not apply, for a reason that is recorded."""


def race(
    name: str,
    ours: tuple[str, list[Form]],
    theirs: tuple[str, list[Form]],
    settings: Settings,
    *,
    images: int,
    facts: Mapping[str, Any] | None = None,
) -> Cell:
    """Prepare every form of both sides, run each once, then time all that work in turn.

    A form that fails is recorded with the reason. As many rounds as `settings.runs`, fewer after
    `settings.seconds`, but `LEAST` at least; two more before them are not timed where that is short. A turn
    lasts `BURST` at least.
    """
    runs: dict[tuple[int, int], Run] = {}
    failures: dict[tuple[int, int], str] = {}
    round_seconds = 0.0
    short = True
    for i, (_, forms) in enumerate((ours, theirs)):
        for j, form in enumerate(forms):
            try:
                run = form.prepare()
                start = time.perf_counter()
                run()  # compiles, and fills caches
                if i == j == 0:
                    short = time.perf_counter() - start < settings.seconds / 20
                if short:  # once more, now without what the first call alone has to do
                    start = time.perf_counter()
                    run()
                round_seconds += time.perf_counter() - start
                runs[i, j] = run
            except Exception as error:  # recorded, so that one form does not stop a long benchmark
                failures[i, j] = reason(error)
    times = _times(runs, settings, round_seconds, images)
    sides = []
    for i, (side, forms) in enumerate((ours, theirs)):
        timed = [
            Timed(
                form.name,
                times.get((i, j)),
                failures.get((i, j), ""),
                getattr(runs.get((i, j)), "about", ""),
                form.competes,
            )
            for j, form in enumerate(forms)
        ]
        sides.append(Side(side, tuple(timed)))
    return Cell(name, sides[0], sides[1], images=images, facts=dict(facts or {}))


def _times(
    runs: Mapping[tuple[int, int], Run], settings: Settings, round_seconds: float, images: int
) -> dict[tuple[int, int], Latency]:
    if not runs:
        return {}
    candidates = {str(key): _outside_inference(run) for key, run in runs.items()}
    warmup = 2 if 10 * round_seconds < settings.seconds else 0
    found = latency(
        candidates,
        torch.empty(images),
        runs=settings.runs,
        warmup=warmup,
        seconds=settings.seconds,
        burst=0.0 if settings.quick else min(BURST, settings.seconds / 100),
        least=1 if settings.quick else min(LEAST, settings.runs),
    )
    return {key: found[str(key)] for key in runs}


def _outside_inference(run: Run) -> Callable[[Any], Any]:
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


@contextmanager
def eager_backend() -> Iterator[None]:
    """Inside, no fast backend is taken by itself: Global layers run in plain PyTorch."""
    kept = dict(backends._READY)
    backends._READY.update(dict.fromkeys(backends._BY_DEVICE.values(), False))
    try:
        yield
    finally:
        backends._READY.clear()
        backends._READY.update(kept)
