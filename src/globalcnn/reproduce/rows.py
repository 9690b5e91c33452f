"""The rows of the published tables, with the counts that a correct build shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    published: figures as printed (acc in % top-1, params, macs, and others); expected: exact counts of the
    published architecture at batch 1 (params, macs_conv_fc, macs_paper_counting, pde_multiplies; for
    equilibrium networks macs_outside_the_solve and macs_per_evaluation), None for a reconstruction.
    """

    table: str
    row: str
    model: str
    dataset: str
    num_classes: int
    input: tuple[int, int, int]
    published: dict[str, float]
    expected: dict[str, int] | None
    reconstruction: bool
    note: str


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All 49 rows, in the order of the paper's tables.

    >>> len(published_rows())
    49
    """
    text = files("globalcnn.reproduce").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(_row(entry) for entry in json.loads(text)["rows"])


def _row(entry: dict[str, Any]) -> PublishedRow:
    return PublishedRow(**{**entry, "input": tuple(entry["input"])})
