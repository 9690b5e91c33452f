"""The report of a recovery, from what its folder keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..files import write_json
from ..train.folder import figures_of
from .budget import saved_by
from .data import Plan
from .recover_folder import END_TO_END, REPAIR, REPORT, CondenseFolder


def report_of(
    folder: CondenseFolder, plan: Plan, about: Mapping[str, Any], *, repair_epochs: int, by_error: bool
) -> dict[str, Any]:
    """Write report.json and return its content.

    original, condensed: parameters, multiply-adds, seconds of a batch, accuracies; phases: the condensed
    network before and after each; curve: a point per phase and epoch, with the epochs and the minutes of
    recovery until then; stages: what each saves, the error that remained, whether it is condensed.
    """
    steps = folder.results()
    costs, original, ended = steps["costs"], steps["original"], steps["ended"]
    repair, end = (figures_of(folder.path / name) for name in (REPAIR, END_TO_END))
    errors = steps["repaired"]["errors"]
    names = {s.name for s in plan.chosen}
    report = {
        "original": {**costs["original"], "test": original["test"], "val": original["val"]},
        "condensed": {**costs["condensed"], "test": ended["test"], "val": ended["val"]},
        "speedup": costs["original"]["seconds"] / costs["condensed"]["seconds"],
        "batch": costs["batch"],
        "phases": [
            {"phase": phase, "epochs": epochs, "test": steps[key]["test"], "val": steps[key]["val"]}
            for phase, epochs, key in (
                ("condensed, norms anew", 0, "started"),
                ("repaired", len(repair), "repaired"),
                ("end to end", len(repair) + len(end), "ended"),
            )
        ],
        "curve": _curve(steps, repair, end),
        "stages": [
            {
                "stage": s.name,
                "condensed": s.name in names,
                "block": s.block,
                "removed": len(s.remove),
                "seconds_saved": saved_by(s).seconds,
                "error_after_repair": errors.get(s.name),
            }
            for s in plan.stages
        ],
        "chosen_by": (
            "the errors that remained after the repair, among the choices that save enough time"
            if by_error
            else "the plan"
        ),
        "repair_epochs": repair_epochs,
        **about,
    }
    write_json(folder.path / REPORT, report)
    return report


def _curve(steps: Mapping[str, Any], repair: Any, end: Any) -> list[dict[str, Any]]:
    seconds, epochs = steps["started"]["seconds_spent"], 0
    points = [_point("condensed, norms anew", 0, seconds, steps["started"])]
    for figures in repair:
        seconds, epochs = seconds + figures["seconds"], epochs + 1
        points.append(_point("repair", epochs, seconds, {}, loss=figures["train_loss"]))
    seconds += steps["repaired"]["seconds_spent"]
    points.append(_point("repaired", epochs, seconds, steps["repaired"]))
    for figures in end:
        seconds, epochs = seconds + figures["seconds"], epochs + 1
        last = steps["ended"]["test"] if figures is end[-1] else None
        found = {"val": figures["val_accuracy"], "test": last}
        points.append(_point("end to end", epochs, seconds, found, loss=figures["train_loss"]))
    return points


def _point(
    phase: str, epochs: int, seconds: float, found: Mapping[str, Any], *, loss: float | None = None
) -> dict[str, Any]:
    return {
        "phase": phase,
        "epochs": epochs,
        "minutes": round(seconds / 60, 4),
        "val": found.get("val"),
        "test": found.get("test"),
        "loss": loss,
    }
