"""What a benchmark gives: cells that compare two sides, each in several variants; and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from globalcnn.measure import Latency

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How long to measure: timed rounds, seconds at most per cell; quick: a smoke run, small and short."""

    rounds: int = 30
    seconds: float = 60.0
    quick: bool = False


@dataclass(frozen=True)
class Timed:
    """One variant of one side: its times, or why there are none.

    about: what there is to say of the variant, such as what the search chose; competes: whether it may be the
    side's fastest (False for what is shown for comparison alone).
    """

    variant: str
    latency: Latency | None
    failure: str = ""
    about: str = ""
    competes: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON, times in seconds per batch."""
        times: dict[str, Any] = {"seconds": None}
        if self.latency is not None:
            t = self.latency
            times = {"seconds": t.median, "lower": t.lower, "upper": t.upper, "rounds": t.runs}
        return {
            "variant": self.variant,
            **times,
            "failure": self.failure,
            "about": self.about,
            "competes": self.competes,
        }


@dataclass(frozen=True)
class Side:
    """One side of a comparison in all its variants."""

    name: str
    timed: tuple[Timed, ...] = ()

    @property
    def fastest(self) -> Timed | None:
        """The fastest variant; None if none came to a time."""
        times = [(t.latency.median, i) for i, t in enumerate(self.timed) if t.latency and t.competes]
        return self.timed[min(times)[1]] if times else None


@dataclass(frozen=True)
class Cell:
    """Ours against theirs in one situation. failure: why the cell could not be measured at all.

    images: in a batch; facts: what is known besides, such as the ratio of multiply-adds.
    """

    name: str
    ours: Side
    theirs: Side
    images: int
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        """Time of our fastest variant as a multiple of theirs; below 1 ours is faster."""
        ours, theirs = self.ours.fastest, self.theirs.fastest
        if ours is None or theirs is None or ours.latency is None or theirs.latency is None:
            return None
        return ours.latency.median / theirs.latency.median

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sides = {}
        for key, side in (("ours", self.ours), ("theirs", self.theirs)):
            fastest = side.fastest
            sides[key] = {
                "name": side.name,
                "fastest": None if fastest is None else fastest.variant,
                "variants": [t.as_dict() for t in side.timed],
            }
        return {
            "name": self.name,
            "images": self.images,
            **sides,
            "ratio": self.ratio,
            "facts": self.facts,
            "failure": self.failure,
        }


@dataclass(frozen=True)
class Comparison:
    """A table of cells. notes: what a reader must know to read it rightly."""

    word: str
    title: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cells = [c.as_dict() for c in self.cells]
        return {"kind": "comparison", "title": self.title, "notes": list(self.notes), "cells": cells}


@dataclass(frozen=True)
class MemoryRow:
    """Bytes of one training step of the layer: kept for the backward, and the peak above what was there."""

    backend: str
    steps: int
    kept: int | None
    peak: int | None
    failure: str = ""


@dataclass(frozen=True)
class MemoryTable:
    """Memory against the number of steps. input_bytes: of one feature map, to compare with."""

    word: str
    title: str
    rows: tuple[MemoryRow, ...]
    input_bytes: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [vars(row) for row in self.rows]
        return {
            "kind": "memory",
            "title": self.title,
            "notes": list(self.notes),
            "input_bytes": self.input_bytes,
            "rows": rows,
        }


Result = Comparison | MemoryTable
