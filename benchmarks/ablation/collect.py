"""Write the results of the trainings into results/ablation/, one file per network, data and epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globalcnn.errors import UserError
from globalcnn.files import write_json

from ..pages import RESULTS
from ..stretches import RESULT
from .arms import ARMS

FOLDER = RESULTS / "ablation"
_SHARED = ("network", "data", "recipe", "environment")
_OF_ARM = ("question", "parameters", "macs")
_OF_RUN = ("seed", "test_accuracy", "validation_accuracy", "train_loss", "seconds")


def write_results(runs: Path, folder: Path = FOLDER) -> list[Path]:
    """One file per group of trainings that ended; returns their paths.

    What a file already tells of other arms and seeds stays, if it is of the same recipe.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(runs.glob(f"*/*/{RESULT}")):
        groups.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    if not groups:
        raise UserError(f"--runs {str(runs)!r} has no training that ended")
    written = []
    for name, found in groups.items():
        path = folder / f"{name}.json"
        write_json(path, _group([*_told(path, found), *found]))
        written.append(path)
    return written


def _told(path: Path, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainings that the file tells of and that are not among `found`."""
    if not path.is_file():
        return []
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["recipe"] != found[0]["recipe"]:
        raise UserError(f"{path} is of another recipe: move it away, or train with its recipe")
    new = {(r["arm"], r["seed"]) for r in found}
    shared = {key: told[key] for key in _SHARED}
    return [
        {**shared, "arm": name, **{key: arm[key] for key in _OF_ARM}, **run}
        for name, arm in told["arms"].items()
        for run in arm["runs"]
        if (name, run["seed"]) not in new
    ]


def _group(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    order = {name: i for i, name in enumerate(ARMS)}
    ordered = sorted(found, key=lambda r: (order.get(r["arm"], len(order)), r["seed"]))
    arms: dict[str, dict[str, Any]] = {}
    for r in ordered:
        arm = arms.setdefault(r["arm"], {**{key: r[key] for key in _OF_ARM}, "runs": []})
        machine = r.get("cpu") or r["environment"].get("cpu")  # runs may come from several
        arm["runs"].append({**{key: r[key] for key in _OF_RUN}, "cpu": machine})
    seeds = sorted({r["seed"] for r in ordered})
    return {**{key: ordered[0][key] for key in _SHARED}, "seeds": seeds, "arms": arms}
