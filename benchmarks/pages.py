"""Shared by the pages written from results: reading, tables in Markdown, descriptions of hardware."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def read(name: str) -> dict[str, Any]:
    """One file of results, its path below results/."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def hardware(content: dict[str, Any]) -> str:
    """The versions and class of hardware of a file of results, and how its threads were bound, as a phrase."""
    e = content["environment"]
    bound = f", {e['openmp']}" if e.get("openmp") else ""
    return f"{e['cpu']}, {e['simd']}, {e['threads']} thread(s){bound}, torch {e['torch']}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    >>> print(table(("a", "b"), [(1, 2)]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def milliseconds(seconds: float | None) -> str:
    """Three digits, or whole ones.

    >>> milliseconds(0.0123456), milliseconds(1.2345), milliseconds(None)
    ('12.3', '1,234', '-')
    """
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:,.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def number(x: float) -> str:
    """Three digits, no exponent.

    >>> [number(x) for x in (0.01234, 5.678, 1234.5, 65432.1)]
    ['0.0123', '5.68', '1,230', '65,400']
    """
    return f"{float(f'{x:.3g}'):,.10g}"


def put(page: Path, section: str) -> None:
    """Put a section, its first and last line being the markers, in the place of the old one in `page`."""
    start, end = section.splitlines()[0], section.splitlines()[-1]
    before, rest = page.read_text(encoding="utf-8").split(start)
    page.write_text(before + section + rest.split(end)[1], encoding="utf-8")
