"""Trains the rows of weights/: networks whose weights come with the library, each by the recipe of its card.

    python -m benchmarks.rows ROW [ROW ...] --data-dir DIR --runs RUNS
    python -m benchmarks.rows ROW [ROW ...] --data-dir DIR --runs RUNS --collect

A row is `weights/NETWORK-DATA.json` with `network`, `data`, `seeds`, `recipe` (fields; those that are left out have the
modern recipe's values, and `--collect` adds them) and `shipped_seed`. Where it learns from a trained network it has
`teacher`: `path` (a run folder, file or name of weights that come with the library; a list of them, where the mean of
their logits counts), the `sha256` of their weights (which `--collect` adds: others are refused then) and any of
`distill`, `temperature`, `teacher_weight` and `views`, as the options of `globalcnn train`. Where it goes on from weights of
weights/, with a new optimiser and schedule, it has `init`: `path`, the name of their row, and `seed`, theirs (default
the shipped one). `--collect` adds how they were trained; where weights/ has others by then, they are trained again
first, in RUNS/ROW-seedSEED-before.

Each training keeps its state in RUNS/ROW-seedSEED after every epoch, and the same command continues where the last one
stopped; `--seeds` trains some of them. `--collect` evaluates the weights after the last epoch on the test images, in
float32 as `globalcnn verify` does, and writes results/rows/ROW.json (with the accuracy on the training images as the
last epoch saw them, augmented; seeds that it has already, by the same recipe, stay), copies the weights of the seed
that is shipped, writes the claim into the card, and makes the table in weights/README.md anew. Results by another
recipe, teacher or `init` than the card's move to results/rows/earlier/, where pairs by one recipe are still found.
Settings were chosen in studies with held-out training images or fixed beforehand (docs/accuracy-per-hour.md), none by
test accuracy, and the last epoch counts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from globalcnn import create_model
from globalcnn.cli.reporting import TrainingReporter
from globalcnn.cli.verify import accuracy_of
from globalcnn.data import DataSource, load_data
from globalcnn.errors import UserError
from globalcnn.files import atomic_write, read_json, write_json
from globalcnn.measure import count
from globalcnn.models import load_with_card
from globalcnn.models.weights import checksum, read_weights
from globalcnn.train import Recipe, train
from globalcnn.train.folder import figures_of
from globalcnn.train.initial import start_from
from globalcnn.train.progress import EpochResult
from globalcnn.train.recipe import completed

from .pages import RESULTS, ROOT, put, table
from .row_cards import How, enumerated, initial_weights, objective_of, used
from .stretches import EndsAt, OutOfTime

WEIGHTS = ROOT / "weights"
START, END = "<!-- rows: written by python -m benchmarks.rows -->", "<!-- end of rows -->"
LAST, BATCH = "last.safetensors", 256
KEPT = (  # in results/rows/, of each training
    "seed",
    "test_accuracy",
    "test_accuracy_in_training",
    "train_accuracy",
    "epochs",
    "training_seconds",
    "recipe",
    "teacher",
    "init",
    "data",
    "environment",
)
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST"}


class Telling(TrainingReporter):
    """Tells of a training as `globalcnn train` does, and ends it after an epoch once the time is over."""

    def __init__(self, until: float, label: str) -> None:
        super().__init__(label=label)
        self._end = EndsAt(until)

    def finished_epoch(self, result: EpochResult) -> None:
        """Its figures in a line."""
        super().finished_epoch(result)
        self._end.finished_epoch(result)


def work(
    row: str,
    data_dir: Path | None,
    runs: Path,
    *,
    until: float,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
) -> bool:
    """Train the seeds (default the card's) of a row that are not done; False where the time is over before."""
    card = read_json(WEIGHTS / f"{row}.json")
    for seed in card["seeds"] if seeds is None else seeds:
        if seed not in card["seeds"]:
            raise UserError(f"{row}: seed {seed} is not one of its card: {card['seeds']}")
        out = runs / f"{row}-seed{seed}"
        try:
            _train(card, seed, out, f"{row}, seed {seed}", data_dir=data_dir, until=until, device=device)
        except OutOfTime:
            print("the time is over; the same command goes on from here", flush=True)
            return False
    return True


def _train(
    card: Mapping[str, Any],
    seed: int,
    out: Path,
    label: str,
    *,
    data_dir: Path | None,
    until: float,
    device: str,
) -> None:
    """One training of a card that is not done, and before it the one of its initial weights if those are gone."""
    if (out / "summary.json").is_file():
        return
    print(f"{label}: {out}", flush=True)
    recipe = Recipe.from_dict(completed(card["recipe"]))
    data = load_data(card["data"], data_dir=data_dir, validation=recipe.validation, seed=0)
    torch.manual_seed(seed)
    model = create_model(card["network"], num_classes=len(data.classes), in_chans=data.in_chans)
    notes, file = {}, None
    if "init" in card:
        begun = initial_weights(card["init"], WEIGHTS, RESULTS / "rows")
        if begun is None:
            begun = _again(card, out, label, data_dir=data_dir, until=until, device=device)
        file, notes["init"] = begun
        _check_same_start(out, label, notes["init"]["sha256"])
        for line in start_from(model, file):
            raise UserError(f"init of the card: {file} is of another network or other data: {line}")
    objective, told = objective_of(card, data, recipe, file)
    with Telling(until, label) as reporter:
        train(
            model, data, recipe, objective=objective, out=out, seed=seed, device=device,
            resume=(out / "run.json").is_file(), reporter=reporter, notes=notes | told,
        )  # fmt: skip


def _check_same_start(out: Path, label: str, digest: str) -> None:
    """A `UserError` where a training that goes on began from other weights than those that its card means now."""
    told = read_json(out / "run.json") if (out / "run.json").is_file() else {}
    before = told.get("init", {}).get("sha256", digest)
    if before != digest:
        raise UserError(
            f"{label}: it began from weights with sha256 {before}, and init of the card means {digest} now: take "
            f"the checkout that has those, or remove {out}"
        )


def _again(card: Mapping[str, Any], out: Path, label: str, **where: Any) -> tuple[Path, dict[str, Any]]:
    """Train the initial weights of a card again, beside `out`: their file, and what is told of them."""
    init = {key: value for key, value in card["init"].items() if key != "test_accuracy"}
    before = out.with_name(f"{out.name}-before")
    of = {"network": card["network"], "data": card["data"], **init}
    _train(of, init["seed"], before, f"{label}, its initial weights", **where)
    file = before / LAST
    return file, {**init, "sha256": checksum(read_weights(file)[0])}


def _ended(card: Mapping[str, Any], row: str, runs: Path) -> dict[int, dict[str, Any]]:
    """The trainings of a row that ended, by seed, with the whole of `teacher` where they had one.

    A `UserError` for one by another recipe, teacher or initial weights than the card's.
    """
    summaries = {seed: runs / f"{row}-seed{seed}" / "summary.json" for seed in card["seeds"]}
    fresh = {seed: read_json(path) for seed, path in summaries.items() if path.is_file()}
    for seed, told in fresh.items():
        how = used(told, card, f"{row}, seed {seed}")
        if how.teacher is not None:
            told["teacher"] = how.teacher
        told["train_accuracy"] = figures_of(summaries[seed].parent)[-1]["train_accuracy"]
    return fresh


def collect(row: str, data_dir: Path | None, runs: Path) -> None:
    """Write the results of the trainings that ended, and what the card says of them."""
    card = read_json(WEIGHTS / f"{row}.json")
    result = RESULTS / "rows" / f"{row}.json"
    fresh = _ended(card, row, runs)
    wanted = How.of(next(iter(fresh.values()), card))
    earlier = read_json(result)["runs"] if result.is_file() else []  # some from runs that are gone
    found = {told["seed"]: told for told in earlier if How.of(told) == wanted}
    found.update(fresh)
    shipped, weights = card["shipped_seed"], WEIGHTS / f"{row}.safetensors"
    files = {seed: runs / f"{row}-seed{seed}" / LAST for seed in fresh}
    if shipped in found and weights.is_file():
        files.setdefault(shipped, weights)
    if files:
        data = load_data(card["data"], data_dir=data_dir, validation=0.0, seed=0)
        found.update({seed: _evaluated(found[seed], file, data) for seed, file in files.items()})
    done = {seed: found[seed] for seed in card["seeds"] if seed in found}
    if shipped not in done:
        raise UserError(f"{row}: the training of seed {shipped} has not ended in {str(runs)!r}")
    _put_aside(result, wanted)
    write_json(
        result,
        {
            "row": row,
            "seeds": list(done),
            "environment": done[shipped]["environment"],
            "runs": [{k: told[k] for k in KEPT if k in told} for told in done.values()],
        },
    )
    if shipped in fresh:
        with atomic_write(weights) as aside:
            shutil.copyfile(files[shipped], aside)
    model, about = load_with_card(weights)
    counted = count(model, (about.in_chans, *about.image_size))
    said = claim(card["network"], card["data"], done)
    card = {"claim": said.pop("claim"), **{k: v for k, v in card.items() if k != "claim"}, **said}
    card.update(
        seeds=list(done),
        recipe=wanted.recipe.as_dict(),
        result=str(result.relative_to(ROOT)),
        parameters=counted.params,
        macs=counted.macs,
        licence="MIT",
        **{key: told for key in ("teacher", "init") if (told := getattr(wanted, key)) is not None},
    )
    write_json(WEIGHTS / f"{row}.json", card)


def _evaluated(told: Mapping[str, Any], file: Path, data: DataSource) -> dict[str, Any]:
    """What is told of a training, with its accuracy in float32: it evaluated in its own precision."""
    before = told.get("test_accuracy_in_training", told["test_accuracy"])
    exact = accuracy_of(file, data, BATCH, device=torch.device("cpu"))
    return {**told, "test_accuracy": exact, "test_accuracy_in_training": before}


def _put_aside(result: Path, wanted: How) -> None:
    """Move results of trainings by other means than is wanted to earlier/, unless they are kept there already."""
    if not result.is_file() or How.of(read_json(result)["runs"][0]) == wanted:
        return
    epochs = read_json(result)["runs"][0]["epochs"]
    folder = result.parent / "earlier"
    folder.mkdir(exist_ok=True)
    for more in ("", *(f"-{number}" for number in range(2, 1000))):
        place = folder / f"{result.stem}-{epochs}-epochs{more}.json"
        if not place.exists() or place.read_bytes() == result.read_bytes():
            result.replace(place)
            return


def claim(network: str, data: str, done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What a card says of trainings by seed.

    >>> run = {"test_accuracy": 0.5, "recipe": {}, "epochs": 3, "training_seconds": 360.0}
    >>> run["environment"] = {"cpu": "a CPU", "threads": 1, "gpu": None}
    >>> claim("net", "mnist", {0: run})["claim"]
    'net on MNIST: 50.00 % of the test images after the last of 3 epochs, seed 0; 0.1 hours each on a CPU, 1 thread(s)'
    """
    each = {str(seed): told["test_accuracy"] for seed, told in done.items()}
    first = next(iter(done.values()))
    hours = round(fmean(told["training_seconds"] for told in done.values()) / 3600, 2)
    machines = [told["environment"] for told in done.values()]
    used = dict.fromkeys(e["gpu"] or f"{e['cpu']}, {e['threads']} thread(s)" for e in machines)
    hardware = " and ".join(used)
    mean, spread = fmean(each.values()), max(each.values()) - min(each.values())
    seeds = f"seed {next(iter(each))}"
    if len(each) > 1:
        seeds = f"mean of seeds {', '.join(each)}, which span {100 * spread:.2f} points"
    how = How.of(first)
    taught = f", learning from {enumerated(how.own_teachers)}" if how.own_teachers else ""
    *before, _ = how.epochs
    begun = f" from weights of {sum(before)} earlier epochs" if before else ""
    without = " without the earlier epochs" if before else ""
    words = (
        f"{network} on {NAMES.get(data, data)}: {100 * mean:.2f} % of the test images after the last of "
        f"{first['epochs']} epochs{begun}{taught}, {seeds}; {hours:.1f} hours each{without} on {hardware}"
    )
    return {"claim": words, "test_accuracy": each, "hours": hours, "hardware": hardware}


def section() -> str:
    """The table of weights/README.md."""
    rows = []
    for path in sorted(WEIGHTS.glob("*.json")):
        card = read_json(path)
        file = path.with_suffix(".safetensors")
        rows.append(
            (
                f"[{path.stem}]({path.name})",
                card["claim"],
                f"{card['parameters']:,}",
                f"{card['macs'] / 1e6:.1f}",
                f"{file.stat().st_size / 1e6:.2f}",
                f"[{card['result']}](../{card['result']})",
                card["licence"],
            )
        )
    heads = ("row", "claim", "parameters", "M multiply-adds", "MB", "result", "licence")
    return "\n".join([START, "", table(heads, rows), "", END])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="network-data; default all cards in weights/")
    parser.add_argument("--data-dir", type=Path, help="the folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/rows"), help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the card's; default all")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--collect", action="store_true", help="write the results of the trainings that ended"
    )
    return parser.parse_args()


def main() -> int:
    """Returns the exit status."""
    args = _arguments()
    known = sorted(path.stem for path in WEIGHTS.glob("*.json"))
    try:
        for row in args.rows:
            if row not in known:
                raise UserError(f"there is no weights/{row}.json; there are {', '.join(known)}")
        until = time.monotonic() + 60 * args.minutes
        for row in args.rows or known:
            if args.collect:
                collect(row, args.data_dir, args.runs)
            elif not work(row, args.data_dir, args.runs, until=until, seeds=args.seeds, device=args.device):
                return 0
        if args.collect:
            put(WEIGHTS / "README.md", section())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
