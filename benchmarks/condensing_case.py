"""A second case of condensing: networks from `globalcnn condense` beside their original, accuracy and time.

    python -m benchmarks.condensing_case ORIGINAL --condensed FOLDER [FOLDER ...]

ORIGINAL is the run folder of the trained network, each FOLDER what `globalcnn condense ... --out FOLDER` made of it.
Accuracies are those of their reports, on the test images: of the original's best weights on the held-out images,
which were condensed, and of the condensed networks after the last epoch. All networks are timed in the same rounds,
on an otherwise idle machine: ONNX Runtime at batch 1, PyTorch in eval mode at batch 64. Writes
results/tiny-imagenet-25/condensed.json and the table of docs/condensing-proof.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from globalcnn.errors import UserError
from globalcnn.files import read_json, write_json
from globalcnn.measure import count

from . import machine
from .condensing.choice import MEASURES, speedup
from .condensing.latency import measured_times
from .condensing.original import Original
from .pages import RESULTS, ROOT, hardware, milliseconds, put, read, table

FILE, PAGE = "tiny-imagenet-25/condensed.json", ROOT / "docs" / "condensing-proof.md"
START = "<!-- second case: written by python -m benchmarks.condensing_case -->"
END = "<!-- end of second case -->"


def section(content: dict[str, Any]) -> str:
    """The text between the markers."""
    original, *others = content["networks"].values()
    rows = []
    for name, found in content["networks"].items():
        phases = found.get("phases", {})
        rows.append(
            (
                f"`{name}`",
                f"{100 * found['test_accuracy']:.2f}",
                *(f"{100 * phases[k]:.1f}" if k in phases else "-" for k in content["phases"]),
                f"{speedup(original, found):.2f}",
                *(milliseconds(found[key]) for key in MEASURES),
                f"{found['parameters']:,}",
                f"{found['macs'] / 1e6:.1f}",
            )
        )
    heads = (
        "network", "test accuracy, %", *(f"{p}, %" for p in content["phases"]), "times as fast",
        "ms, ONNX Runtime, batch 1", "ms, PyTorch, batch 64", "parameters", "M multiply-adds",
    )  # fmt: skip
    recipe, first = content["recipe"], others[0]
    about = (
        f"**{content['network']} on {content['data']}** ({content['classes']} classes, images of "
        f"{' x '.join(map(str, content['image_size']))}): {original['epochs']} epochs, then {first['repair_epochs']} of "
        f"repair and {recipe['epochs']} end to end, batch {recipe['batch_size']}, lr {recipe['lr']:g}; seed "
        f"{content['seed']}. Trained: {hardware({'environment': content['trained']})}. Timed: {hardware(content)}, "
        f"medians of {content['rounds']} rounds."
    )
    return "\n".join([START, "", about, "", table(heads, rows), "", END])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.condensing_case",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("original", type=Path, help="run folder of the trained network")
    parser.add_argument(
        "--condensed", type=Path, nargs="+", required=True, help="folders of the condensed ones"
    )
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measure; default %(default)s")
    return parser.parse_args()


def main() -> int:
    """Measure, write the file and the page. Returns the exit status."""
    args = _arguments()
    try:
        summary = read_json(args.original / "summary.json")
        reports = {folder.name: read_json(folder / "report.json") for folder in args.condensed}
        folders = {args.original.name: args.original, **dict(zip(reports, args.condensed, strict=True))}
        loaded = {name: Original.load(folder) for name, folder in folders.items()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = next(iter(loaded.values()))
    facts = machine.facts(seed=summary["seed"])
    models = {name: one.model for name, one in loaded.items()}
    times, failures = measured_times(first, models, args.rounds, args.seconds)
    networks: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        counted = count(model, first.size)
        networks[name] = {"parameters": counted.params, "macs": counted.macs, **times[name]}
    original, *condensed = networks.values()
    report = next(iter(reports.values()))  # the weights that were condensed: best on the held-out images
    original.update(test_accuracy=report["original"]["test"], epochs=summary["epochs"])
    for found, report in zip(condensed, reports.values(), strict=True):
        found.update(
            test_accuracy=report["condensed"]["test"],
            phases={p["phase"]: p["test"] for p in report["phases"][:-1]},
            repair_epochs=report["repair_epochs"],
        )
    content = {
        **facts,
        "rounds": args.rounds,
        "failures": failures,
        "network": summary["model"]["name"],
        "data": Path(summary["data"]["name"].partition(":")[2]).name or summary["data"]["name"],
        "classes": len(summary["data"]["classes"]),
        "image_size": list(first.size[1:]),
        "trained": summary["environment"],
        "recipe": report["recipe"],
        "phases": [p["phase"] for p in report["phases"][:-1]],
        "networks": networks,
    }
    write_json(RESULTS / FILE, content)
    put(PAGE, section(read(FILE)))
    print(f"wrote {RESULTS / FILE} and {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
