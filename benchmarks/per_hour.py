"""What buys most accuracy per hour? Trains one network by recipes that each differ in one thing, for equal time.

    python -m benchmarks.per_hour --data-dir DIR --cost          on an otherwise idle machine, minutes
    python -m benchmarks.per_hour --data-dir DIR --runs RUNS
    python -m benchmarks.per_hour --runs RUNS --collect

`--cost` trains every arm on a few images for all its epochs, in rounds side by side, for the seconds of an epoch. The
trainings read them from results/per-hour/: each arm gets as many epochs as take the time that the base takes for
`--epochs`. Accuracy is that on 10 % of the training images, held out, after the last epoch; test images decide
nothing. Each training keeps its state in RUNS: the same command continues where the last one stopped, and several
processes share the work. `--collect` writes the results. `--list` shows the arms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from globalcnn import create_model
from globalcnn.data import from_arrays, load_data
from globalcnn.data.memory import TensorSource
from globalcnn.errors import UserError, unknown_name
from globalcnn.files import read_json, write_json
from globalcnn.measure import environment
from globalcnn.train import CrossEntropy, Objective, Outcome, Recipe, train

from .pages import RESULTS, table
from .stretches import RESULT, EndsAt, OutOfTime, claimed

FOLDER = RESULTS / "per-hour"
BASE = Recipe(name="base", batch_size=128, lr=0.2, precision="bf16", channels_last=True)
COST_IMAGES, COST_EPOCHS = 1280, 4


@final
class HarderShare(Objective):
    """Cross entropy on the share of each batch that the network finds hardest, by a pass without gradients."""

    def __init__(self, share: float, *, label_smoothing: float) -> None:
        self.share, self.labels = share, CrossEntropy(label_smoothing=label_smoothing)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        model.eval()
        with torch.no_grad():
            losses = nn.functional.cross_entropy(model(images).float(), targets, reduction="none")
        model.train()
        chosen = losses.topk(max(2, round(self.share * len(images)))).indices
        return Outcome(self.labels.loss(model(images[chosen]), targets[chosen]), None, {})

    def describe(self) -> dict[str, Any]:
        return {"name": "harder_share", "share": self.share, **self.labels.describe()}


@dataclass(frozen=True)
class Arm:
    """What differs from the base. harder: the share of each batch that is learned from."""

    name: str
    question: str
    changes: dict[str, Any] = field(default_factory=dict)
    harder: float | None = None

    def recipe(self, epochs: int) -> Recipe:
        """Its recipe for so many epochs."""
        return BASE.replace(**{"epochs": epochs, **self.changes})

    def objective(self, recipe: Recipe) -> Objective | None:
        """None for the usual one."""
        smoothing = recipe.label_smoothing
        return None if self.harder is None else HarderShare(self.harder, label_smoothing=smoothing)


_ALL = (
    Arm("base", "the recipe that all others change"),
    Arm("no-smoothing", "labels as they are", {"label_smoothing": 0.0}),
    Arm("no-average", "without averaged weights", {"ema_decay": 0.0}),
    Arm("decay-weights-only", "weight decay on weights alone", {"decay_norms_and_biases": False}),
    Arm("little-decay", "a fifth of the weight decay", {"weight_decay": 1e-4}),
    Arm("growing", "images of 24 pixels that grow to 32", {"first_image_size": 24}),
    Arm("growing-16", "images of 16 pixels that grow to 32", {"first_image_size": 16}),
    Arm("harder-half", "learning from the harder half of each batch", harder=0.5),
    Arm("muon", "Muon for convolutions", {"optimizer": "muon", "lr": 0.005, "weight_decay": 0.05}),
    Arm(
        "muon-faster", "Muon, three times the rate", {"optimizer": "muon", "lr": 0.015, "weight_decay": 0.05}
    ),
    Arm("larger-lr", "twice the learning rate", {"lr": 0.4}),
    Arm("batch-64", "half the batch, half the rate", {"batch_size": 64, "lr": 0.1}),
    Arm("cutout", "squares of 8 pixels cut out", {"cutout": 8}),
    Arm("mixup", "mixup, alpha 0.2", {"mixup": 0.2}),
    Arm(
        "tiny",
        "what helped, together: no smoothing, growing images, little decay on weights alone",
        {
            "label_smoothing": 0.0,
            "first_image_size": 24,
            "weight_decay": 1e-4,
            "decay_norms_and_biases": False,
        },
    ),
)
ARMS = {arm.name: arm for arm in _ALL}


def find_arm(name: str) -> Arm:
    """The arm of that name."""
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]


def costs_file(network: str, data: str) -> Path:
    """Where the seconds of an epoch are, relative to the base's."""
    return FOLDER / f"cost-{network}-{data}.json"


def measure_costs(network: str, data: str, data_dir: Path | None, *, rounds: int) -> Path:
    """Seconds per image of every arm beside the base, medians over rounds in which all run once."""
    source = load_data(data, data_dir=data_dir, validation=0, seed=0)
    assert isinstance(source, TensorSource)
    part = source.pools["train"]
    few = from_arrays(
        part.images[:COST_IMAGES],
        part.labels[:COST_IMAGES],
        x_test=part.images[:2],
        y_test=part.labels[:2],
        classes=source.classes,
        layout="NCHW",
        validation=0,
    )
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds + 1):  # the first one prepares kernels
        for arm in ARMS.values():
            model = create_model(network, num_classes=len(source.classes))
            recipe = arm.recipe(COST_EPOCHS).replace(validation=0.0)
            result = train(model, few, recipe, objective=arm.objective(recipe), device="cpu")
            if number:
                seconds[arm.name].append(sum(e["seconds"] for e in result.epochs))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    relative = {name: round(found / medians["base"], 3) for name, found in medians.items()}
    path = costs_file(network, data)
    write_json(
        path,
        {
            "network": network,
            "data": data,
            "images": COST_IMAGES,
            "epochs": COST_EPOCHS,
            "rounds": rounds,
            "seconds_per_epoch_of_50000": round(medians["base"] / COST_EPOCHS / COST_IMAGES * 50_000, 1),
            "relative": relative,
            "environment": environment(),
        },
    )
    return path


def work(
    network: str,
    data: str,
    data_dir: Path | None,
    runs: Path,
    *,
    arms: list[str],
    seeds: list[int],
    epochs: int,
    until: float,
) -> int:
    """Train what is not done, until the clock `time.monotonic()` says `until`; returns how many ended."""
    relative = read_json(costs_file(network, data))["relative"]
    source = load_data(data, data_dir=data_dir, validation=BASE.validation, seed=0)
    ended = 0
    for seed in seeds:
        for arm in map(find_arm, arms):
            folder = runs / f"{network}-{data}-{epochs}" / f"{arm.name}-seed{seed}"
            with claimed(folder) as ours:
                if not ours:
                    continue
                recipe = arm.recipe(max(1, round(epochs / relative[arm.name])))
                print(f"{arm.name}, seed {seed}, {recipe.epochs} epochs: {folder}", flush=True)
                torch.manual_seed(seed)
                model = create_model(network, num_classes=len(source.classes))
                out = folder / "run"
                try:
                    result = train(
                        model, source, recipe, objective=arm.objective(recipe), out=out, seed=seed,
                        resume=out.exists(), reporter=EndsAt(until),
                    )  # fmt: skip
                except OutOfTime:
                    print("the time is over; the same command goes on from here", flush=True)
                    return ended
                assert result.test is not None
                write_json(
                    folder / RESULT,
                    {
                        "network": network,
                        "data": data,
                        "base_epochs": epochs,
                        "arm": arm.name,
                        "question": arm.question,
                        "seed": seed,
                        "epochs": recipe.epochs,
                        "validation_accuracy": [e["val_accuracy"] for e in result.epochs],
                        "train_loss": [e["train_loss"] for e in result.epochs],
                        "test_accuracy": result.test.accuracy,
                        "recipe": recipe.as_dict(),
                        "environment": environment(),
                    },
                )
                ended += 1
    return ended


def collect(runs: Path) -> list[Path]:
    """The results of the trainings that ended, one file per network, data and time; with those it holds already."""
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for path in sorted(runs.glob(f"*/*/{RESULT}")):
        told = read_json(path)
        found.setdefault(path.parent.parent.name, {})[told["arm"], told["seed"]] = told
    written = []
    for name, each in found.items():
        target = FOLDER / f"{name}.json"
        if target.is_file():
            before = {(r["arm"], r["seed"]): r for r in read_json(target)["runs"]}
            each = {**before, **each}
        order = list(ARMS)
        ordered = sorted(each.values(), key=lambda r: (order.index(r["arm"]), r["seed"]))
        write_json(target, {"judged_by": "held-out training images, the last epoch", "runs": ordered})
        written.append(target)
    return written


def as_table(path: Path) -> str:
    """The arms of a results file, the most accurate first."""
    runs = read_json(path)["runs"]
    base = {r["seed"]: r["validation_accuracy"][-1] for r in runs if r["arm"] == "base"}
    rows = []
    for arm in ARMS.values():
        mine = [r for r in runs if r["arm"] == arm.name]
        if not mine:
            continue
        last = [100 * r["validation_accuracy"][-1] for r in mine]
        lead = [100 * (r["validation_accuracy"][-1] - base[r["seed"]]) for r in mine if r["seed"] in base]
        rows.append(
            (
                statistics.fmean(last),
                f"`{arm.name}`",
                arm.question,
                mine[0]["epochs"],
                f"{statistics.fmean(last):.2f} ({', '.join(f'{x:.2f}' for x in last)})",
                f"{statistics.fmean(lead):+.2f}" if lead else "-",
            )
        )
    rows.sort(key=lambda row: -row[0])
    heads = ("arm", "what differs", "epochs", "held-out accuracy, %: mean (seeds)", "points from the base")
    return table(heads, [row[1:] for row in rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.per_hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="resnet_global_tiny_cifar", help="default %(default)s")
    parser.add_argument("--data", default="cifar100", help="default %(default)s")
    parser.add_argument("--data-dir", type=Path, help="the folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/per-hour"), help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=12, help="of the base; default %(default)s")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help="default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default 0")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--cost", action="store_true", help="measure the seconds of an epoch of every arm")
    parser.add_argument("--rounds", type=int, default=3, help="of --cost; default %(default)s")
    parser.add_argument(
        "--collect", action="store_true", help="write the results of the trainings that ended"
    )
    parser.add_argument("--list", action="store_true", help="show the arms")
    return parser.parse_args()


def main() -> int:
    """Returns the exit status."""
    args = _arguments()
    try:
        for name in args.arms:
            find_arm(name)
        if args.epochs < 1 or args.rounds < 1 or not args.minutes > 0:
            raise UserError("--epochs and --rounds must be 1 or more, and --minutes above 0")
        if args.list:
            for arm in ARMS.values():
                print(f"{arm.name:24}{arm.question}")
        elif args.cost:
            print(f"wrote {measure_costs(args.network, args.data, args.data_dir, rounds=args.rounds)}")
        elif args.collect:
            for path in collect(args.runs):
                print(f"wrote {path}\n\n{as_table(path)}")
        else:
            ended = work(
                args.network, args.data, args.data_dir, args.runs, arms=args.arms, seeds=args.seeds,
                epochs=args.epochs, until=time.monotonic() + 60 * args.minutes,
            )  # fmt: skip
            print(f"{ended} training(s) ended")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
