"""Write the results of the trainings into results/ablation/, one file per network, data and epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globalcnn.errors import UserError
from globalcnn.files import write_json

from ..pages import RESULTS
from .arms import ARMS
from .runs import RESULT

FOLDER = RESULTS / "ablation"
_SHARED = ("network", "data", "recipe", "environment")


def write_results(runs: Path) -> list[Path]:
    """One file per group of trainings that ended; returns their paths."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(runs.glob(f"*/*/{RESULT}")):
        groups.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    if not groups:
        raise UserError(f"--runs {str(runs)!r} has no training that ended")
    written = []
    for name, found in groups.items():
        write_json(FOLDER / f"{name}.json", _group(found))
        written.append(FOLDER / f"{name}.json")
    return written


def _group(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    order = {name: i for i, name in enumerate(ARMS)}
    ordered = sorted(found, key=lambda r: (order.get(r["arm"], len(order)), r["seed"]))
    arms: dict[str, dict[str, Any]] = {}
    for r in ordered:
        arm = arms.setdefault(
            r["arm"],
            {"question": r["question"], "parameters": r["parameters"], "macs": r["macs"], "runs": []},
        )
        arm["runs"].append(
            {k: r[k] for k in ("seed", "test_accuracy", "validation_accuracy", "train_loss", "seconds")}
        )
    seeds = sorted({r["seed"] for r in ordered})
    return {**{key: ordered[0][key] for key in _SHARED}, "seeds": seeds, "arms": arms}
