"""A study of recipes: trainings of one network that each differ from a base in one thing, judged by held-out images."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn import create_model
from globalcnn.data import load_data
from globalcnn.errors import UserError, unknown_name
from globalcnn.files import read_json, write_json
from globalcnn.measure import environment
from globalcnn.train import Objective, Recipe, train

from .pages import RESULTS, table
from .stretches import RESULT, EndsAt, OutOfTime, claimed


@dataclass(frozen=True)
class Arm:
    """What differs from the base: fields of the recipe, settings of the network's constructor, what is done to the
    new network, another network altogether, what is minimised. costs_as: the arm whose epochs take as long, if this
    one's were not timed.
    """

    name: str
    question: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None
    network: str | None = None
    objective: Callable[[Recipe], Objective] | None = None
    costs_as: str | None = None


@dataclass(frozen=True)
class Study:
    """The arms of a study and the recipe that they change; name: of its folder in results/."""

    name: str
    base: Recipe
    arms: Mapping[str, Arm]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        if name not in self.arms:
            raise unknown_name("arm", name, self.arms)
        return self.arms[name]

    def recipe(self, name: str, epochs: int) -> Recipe:
        """The arm's recipe for so many epochs."""
        return self.base.replace(**{"epochs": epochs, **self.arm(name).changes})

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return RESULTS / self.name


def build(arm: Arm, network: str, *, num_classes: int, seed: int) -> nn.Module:
    """The arm's network with the weights of that seed."""
    torch.manual_seed(seed)
    model = create_model(arm.network or network, num_classes=num_classes, **arm.settings)
    if arm.prepare is not None:
        arm.prepare(model)
    return model


def work(
    study: Study,
    network: str,
    data: str,
    *,
    data_dir: Path | None,
    runs: Path,
    epochs: Mapping[str, int],
    seeds: Sequence[int],
    group: str,
    until: float,
) -> int:
    """Train what is not done, until the clock `time.monotonic()` says `until`; returns how many ended.

    epochs: of each arm to train; group: the folder in `runs`, and the name of the file of results.
    """
    source = load_data(data, data_dir=data_dir, validation=study.base.validation, seed=0)
    ended = 0
    for seed in seeds:
        for name, length in epochs.items():
            arm, folder = study.arm(name), runs / group / f"{name}-seed{seed}"
            with claimed(folder) as ours:
                if not ours:
                    continue
                recipe, out = study.recipe(name, length), folder / "run"
                print(f"{name}, seed {seed}, {length} epochs: {folder}", flush=True)
                model = build(arm, network, num_classes=len(source.classes), seed=seed)
                objective = None if arm.objective is None else arm.objective(recipe)
                try:
                    result = train(
                        model, source, recipe, objective=objective, out=out, seed=seed,
                        resume=out.exists(), reporter=EndsAt(until),
                    )  # fmt: skip
                except OutOfTime:
                    print("the time is over; the same command goes on from here", flush=True)
                    return ended
                assert result.test is not None
                best = None if result.best_test is None else result.best_test.accuracy
                told = {
                    "network": arm.network or network,
                    "data": data,
                    "arm": name,
                    "question": arm.question,
                    "seed": seed,
                    "epochs": length,
                    "validation_accuracy": [e["val_accuracy"] for e in result.epochs],
                    "train_loss": [e["train_loss"] for e in result.epochs],
                    "train_accuracy": [e["train_accuracy"] for e in result.epochs],
                    "test_accuracy": result.test.accuracy,
                    "test_accuracy_of_best": best,
                    "best_epoch": result.best_epoch,
                    "recipe": recipe.as_dict(),
                    "environment": environment(),
                }
                write_json(folder / RESULT, told)
                ended += 1
    return ended


def collect(study: Study, runs: Path) -> list[Path]:
    """The results of the trainings that ended, a file for each group, with those that it holds already.

    A `UserError` where none has ended and there are no earlier results either.
    """
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for path in sorted(runs.glob(f"*/*/{RESULT}")):
        told = read_json(path)
        if told["arm"] in study.arms:
            found.setdefault(path.parent.parent.name, {})[told["arm"], told["seed"]] = told
    if not found and not any(study.folder.glob("*.json")):
        raise UserError(f"no training of this study has ended in {str(runs)!r}")
    written = []
    for group, each in found.items():
        target = study.folder / f"{group}.json"
        if target.is_file():
            each = {**{(r["arm"], r["seed"]): r for r in read_json(target)["runs"]}, **each}
        order = list(study.arms)
        ordered = sorted(each.values(), key=lambda r: (order.index(r["arm"]), r["seed"]))
        content = {
            "judged_by": "held-out training images, the last epoch",
            "seeds": sorted({r["seed"] for r in ordered}),
            "environment": ordered[0]["environment"],
            "runs": ordered,
        }
        write_json(target, content)
        written.append(target)
    return written


def as_table(study: Study, path: Path) -> str:
    """The arms of a file of results, the most accurate first, beside the first of the study that is in it."""
    runs = read_json(path)["runs"]
    found = {r["arm"] for r in runs}
    base = next(name for name in study.arms if name in found)
    reference = {r["seed"]: r["validation_accuracy"][-1] for r in runs if r["arm"] == base}
    rows = []
    for name, arm in study.arms.items():
        mine = [r for r in runs if r["arm"] == name]
        if not mine:
            continue
        last = [100 * r["validation_accuracy"][-1] for r in mine]
        best = [100 * max(r["validation_accuracy"]) for r in mine]
        told = [r["train_accuracy"][-1] for r in mine if r.get("train_accuracy") and r["train_accuracy"][-1]]
        lead = [
            100 * (r["validation_accuracy"][-1] - reference[r["seed"]])
            for r in mine
            if r["seed"] in reference
        ]
        rows.append(
            (
                statistics.fmean(last),
                f"`{name}`",
                arm.question,
                mine[0]["epochs"],
                f"{statistics.fmean(last):.2f} ({', '.join(f'{x:.2f}' for x in last)})",
                f"{statistics.fmean(lead):+.2f}" if lead else "-",
                f"{statistics.fmean(best):.2f}",
                f"{100 * statistics.fmean(told):.2f}" if told else "-",
                f"{100 * statistics.fmean(r['test_accuracy'] for r in mine):.2f}",
            )
        )
    rows.sort(key=lambda row: -row[0])
    heads = (
        "arm", "what differs", "epochs", "held-out accuracy, %: mean (seeds)", f"points from `{base}`",
        "best epoch's", "in training", "test accuracy",
    )  # fmt: skip
    return table(heads, [row[1:] for row in rows])


def parser(
    study: Study, module: str, about: str | None, *, epochs: int, seed: int
) -> argparse.ArgumentParser:
    """The command line of a study. module: its name in `benchmarks`; about: its docstring."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs = Path("runs") / module.replace("_", "-")
    made.add_argument("--data-dir", type=Path, help="the folder of the data")
    made.add_argument("--runs", type=Path, default=runs, help="default %(default)s")
    made.add_argument(
        "--epochs", type=int, default=epochs, help=f"of {next(iter(study.arms))}; default %(default)s"
    )
    made.add_argument("--arms", nargs="+", default=list(study.arms), metavar="ARM", help="default all")
    made.add_argument("--seeds", nargs="+", type=int, default=[seed], help=f"default {seed}")
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    made.add_argument("--collect", action="store_true", help="write the results of the trainings that ended")
    made.add_argument("--list", action="store_true", help="show the arms")
    return made


def run(study: Study, args: argparse.Namespace, command: Callable[[float], None]) -> int:
    """Check the options of `parser`, show the arms, or call the command with the time (`time.monotonic()`) when it
    ends. The exit status: 2 for a mistake, told in one line.
    """
    try:
        for name in args.arms:
            study.arm(name)
        if args.epochs < 1 or not args.minutes > 0:
            raise UserError("--epochs must be 1 or more, and --minutes above 0")
        if args.list:
            for arm in study.arms.values():
                print(f"{arm.name:24}{arm.question}")
        else:
            command(time.monotonic() + 60 * args.minutes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
