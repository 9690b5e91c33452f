"""Write the results of the trainings into one file per network and data, with the measured times."""

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
from .choice import MEASURES
from .latency import label, read_times
from .runs import ORIGINAL

FOLDER = RESULTS / "condensing"
OF_A_RUN = (
    "seed",
    "test_accuracy",
    "before_recovery",
    "epochs",
    "repair_epochs",
    "seconds",
    "allowed_seconds",
)
OF_A_CHOICE = ("target", "candidate", "settings", "parameters", "macs")


def write_results(runs: Path, results: Path, *, epochs: int) -> list[Path]:
    """One file per network and data that were trained for so many epochs of recovery; returns their paths."""
    written = []
    for folder in sorted(runs.glob(f"*-{epochs}")):
        found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob(f"*/{RESULT}"))]
        if found:
            path = results / f"{found[0]['network']}-{found[0]['data']}.json"
            original = json.loads((folder / ORIGINAL).read_text(encoding="utf-8"))
            times = read_times(results, found[0]["network"], original["weights"])["side_by_side"]
            write_json(path, collected(original, found, times, epochs))
            written.append(path)
    if not written:
        raise UserError(f"--runs {str(runs)!r} has no training of {epochs} epochs that ended")
    return written


def collected(
    original: dict[str, Any], found: Sequence[dict[str, Any]], times: dict[str, Any], epochs: int
) -> dict[str, Any]:
    """The content of a file: the original, and of each arm a choice per target with a run per seed.

    times: of all candidates that are taken, side by side.
    """
    order = {name: i for i, name in enumerate(ARMS)}
    ordered = sorted(found, key=lambda r: (order.get(r["arm"], len(order)), r["target"], r["seed"]))
    arms: dict[str, Any] = {}
    for r in ordered:
        about = {"question": r["question"], "recipe": r["recipe"]}
        arm = arms.setdefault(r["arm"], {**about, "targets": {}})
        key = f"{r['target']:g}"
        if key not in arm["targets"]:
            candidate = times["candidates"].get(label(r["arm"], r["candidate"]))
            if candidate is None:
                raise UserError(f"{r['arm']}, {r['candidate']} was not timed side by side: --latency again")
            arm["targets"][key] = {
                **{k: r[k] for k in OF_A_CHOICE},
                **{k: candidate[k] for k in (*MEASURES, "speedup")},
                "runs": [],
            }
        if arm["targets"][key]["candidate"] != r["candidate"]:
            raise UserError(f"{r['arm']} at {key}x: the seeds were trained with different candidates")
        arm["targets"][key]["runs"].append({k: r[k] for k in OF_A_RUN if k in r})
    return {
        "network": ordered[0]["network"],
        "data": ordered[0]["data"],
        "epochs": epochs,
        "seeds": sorted({r["seed"] for r in ordered}),
        "environment": ordered[0]["environment"],
        "timed": {key: times[key] for key in ("rounds", "load_before", "environment")},
        "original": {**original, **times["original"]},
        "arms": arms,
    }
