"""Writes the tables of docs/forms.md from results/bench/deployed_forms.json.

python -m benchmarks.forms_page
"""

from __future__ import annotations

from typing import Any

from .pages import ROOT, hardware, milliseconds, put, read, table

PAGE = ROOT / "docs" / "forms.md"
START, END = "<!-- tables: written by python -m benchmarks.forms_page -->", "<!-- end of tables -->"


def cell(form: dict[str, Any], engine: str) -> str:
    """Milliseconds in an engine, and the ratio to the baseline in it.

    >>> cell({"engines": {"a": {"seconds": 0.002}}, "ratio_to_baseline": {"a": 0.5}}, "a")
    '2 (0.50)'
    >>> cell({"engines": {"a": {"seconds": None}}, "ratio_to_baseline": {"a": None}}, "a")
    '-'
    """
    seconds, ratio = form["engines"][engine]["seconds"], form["ratio_to_baseline"][engine]
    if seconds is None:
        return "-"
    return milliseconds(seconds) + ("" if ratio is None else f" ({ratio:.2f})")


def best(form: dict[str, Any]) -> float:
    """Seconds in the engine that runs the form fastest."""
    found: list[float] = [t["seconds"] for t in form["engines"].values() if t["seconds"] is not None]
    return min(found)


def forms_table(group: dict[str, Any]) -> str:
    """The forms of one network at one batch size, the fastest first."""
    forms = sorted(group["forms"], key=best)
    engines = list(forms[0]["engines"])
    against = best(next(f for f in forms if f["form"] == "baseline"))
    rows = [
        (
            f"`{f['form']}`", f["about"], f"{f['params']:,}", f"{f['macs'] / 1e6:.3g}",
            *(cell(f, e) for e in engines), f"{best(f) / against:.2f}",
        )
        for f in forms
    ]  # fmt: skip
    return table(("form", "what it is", "parameters", "M multiply-adds", *engines, "best / best"), rows)


def section(found: dict[str, Any]) -> str:
    """The text between the markers."""
    parts = [START]
    for group in found["cells"]:
        channels, height, width = group["input"]
        parts += [
            f"**{group['network']}, batch {group['batch']}, {channels} x {height} x {width}**",
            forms_table(group),
        ]
    parts.append(
        "Milliseconds a batch, medians of interleaved rounds, one engine after the other; in "
        "brackets the ratio to the baseline in the same engine; *best / best*: fastest engine of the form over "
        f"fastest engine of the baseline. Threads not bound. {hardware(found)}."
    )
    return "\n\n".join([*parts, END])


def main() -> None:
    """Put the tables into the page, between its markers."""
    put(PAGE, section(read("bench/deployed_forms.json")))


if __name__ == "__main__":
    main()
