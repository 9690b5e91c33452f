"""What buys most accuracy per hour? Trains one network by recipes that each differ in one thing, for equal time.

    python -m benchmarks.per_hour --data-dir DIR --cost          on an otherwise idle machine, minutes
    python -m benchmarks.per_hour --data-dir DIR --runs RUNS
    python -m benchmarks.per_hour --runs RUNS --collect

`--cost` trains the arms (default all) on a few images, in rounds side by side, for the seconds of an epoch. The
trainings read them from results/per-hour/: each arm gets as many epochs as take the time that the base takes for
`--epochs`. Accuracy is that on 10 % of the training images, held out, after the last epoch; test images decide
nothing. Each training keeps its state in RUNS: the same command continues where the last one stopped, and several
processes share the work. `--collect` writes the results, and their tables into docs/accuracy-per-hour.md. `--list`
shows the arms.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from globalcnn.data import from_arrays, load_data
from globalcnn.data.memory import TensorSource
from globalcnn.errors import UserError
from globalcnn.files import read_json, write_json
from globalcnn.measure import environment
from globalcnn.train import CrossEntropy, Objective, Outcome, Recipe, train

from . import step_cost
from .pages import ROOT, hardware, put
from .study import Arm, Study, as_table, build, collect, parser, run, work

BASE = Recipe(name="base", optimizer="sgd", batch_size=128, lr=0.2, precision="bf16", channels_last=True)
PAGE = ROOT / "docs" / "accuracy-per-hour.md"
START, END = "<!-- tables: written by python -m benchmarks.per_hour -->", "<!-- end of tables -->"
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


def _muon(lr: float, *, weight_decay: float = 0.05, **other: Any) -> dict[str, Any]:
    return {"optimizer": "muon", "lr": lr, "weight_decay": weight_decay, **other}


_AS_THEY_ARE = {"label_smoothing": 0.0, "crop_padding": 0, "compile": True}


def _muon_with(name: str, about: str, *, lr: float = 0.03, **changes: Any) -> Arm:
    """An arm of Muon with further changes, a step of which takes as long."""
    return Arm(f"muon-{name}", f"Muon, lr {lr:g}, {about}", _muon(lr, **changes), costs_as="muon-faster")


_ALL = (
    Arm("base", "the recipe that all others change"),
    Arm("no-smoothing", "labels as they are", {"label_smoothing": 0.0}),
    Arm("no-average", "without averaged weights", {"ema_decay": 0.0}),
    Arm("decay-weights-only", "weight decay on weights alone", {"decay_norms_and_biases": False}),
    Arm("little-decay", "a fifth of the weight decay", {"weight_decay": 1e-4}),
    Arm("growing", "images of 24 pixels that grow to 32", {"first_image_size": 24}),
    Arm("growing-16", "images of 16 pixels that grow to 32", {"first_image_size": 16}),
    Arm(
        "harder-half",
        "learning from the harder half of each batch",
        objective=lambda recipe: HarderShare(0.5, label_smoothing=recipe.label_smoothing),
    ),
    Arm("muon", "Muon for dense convolutions, AdamW for the rest, lr 0.005", _muon(0.005)),
    Arm("muon-faster", "Muon, lr 0.015", _muon(0.015)),
    Arm("muon-0.03", "Muon, lr 0.03", _muon(0.03), costs_as="muon-faster"),
    Arm("muon-0.06", "Muon, lr 0.06", _muon(0.06), costs_as="muon-faster"),
    _muon_with("little-decay", "a tenth of its weight decay", weight_decay=0.005),
    _muon_with("nesterov", "Nesterov's momentum", optimizer="nmuon"),
    _muon_with("no-smoothing", "labels as they are", label_smoothing=0.0),
    Arm("muon-batch-64", "Muon, lr 0.03, half the batch", _muon(0.03, batch_size=64)),
    Arm("muon-batch-256", "Muon, lr 0.03, twice the batch", _muon(0.03, batch_size=256)),
    _muon_with("rest-0.3", "AdamW's rate 0.3 of it", fallback_lr_scale=0.3),
    _muon_with("rest-0.1", "AdamW's rate a tenth of it", fallback_lr_scale=0.1),
    _muon_with("rest-3", "AdamW's rate three times it", fallback_lr_scale=3.0),
    _muon_with("no-crop", "whole images, only flipped", crop_padding=0),
    _muon_with("crop-2", "random crop after padding by 2 pixels instead of 4", crop_padding=2),
    _muon_with("tiny", "labels and images as they are, compiled", **_AS_THEY_ARE),
    _muon_with("tiny-slower", "labels and images as they are, compiled", lr=0.015, **_AS_THEY_ARE),
    _muon_with("no-average", "without averaged weights", ema_decay=0.0),
    _muon_with("decay-weights-only", "weight decay on weights alone", decay_norms_and_biases=False),
    _muon_with("cutout", "squares of 8 pixels cut out", cutout=8),
    _muon_with("mixup", "mixup, alpha 0.2", mixup=0.2),
    _muon_with("0.01-rest-3", "AdamW's rate 0.03", lr=0.01, fallback_lr_scale=3.0),
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
STUDY = Study("per-hour", BASE, {arm.name: arm for arm in _ALL})


def costs_file(network: str, data: str) -> Path:
    """Where the seconds of an epoch are, relative to the base's."""
    return STUDY.folder / f"cost-{network}-{data}.json"


def measure_costs(network: str, data: str, data_dir: Path | None, *, arms: list[str], rounds: int) -> Path:
    """Seconds per image of the arms beside the base, medians over rounds in which all run once."""
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
    wanted = {"base", *map(_timed, arms)}
    timed = {name: arm for name, arm in STUDY.arms.items() if name in wanted}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first one prepares kernels
        for name, arm in timed.items():
            model = build(arm, network, num_classes=len(source.classes), seed=0)
            recipe = STUDY.recipe(name, COST_EPOCHS).replace(validation=0.0)
            objective = None if arm.objective is None else arm.objective(recipe)
            result = train(model, few, recipe, objective=objective, device="cpu")
            if number:
                seconds[name].append(sum(e["seconds"] for e in result.epochs))
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
            "seed": 0,
            "environment": environment(),
        },
    )
    return path


def epochs_for(network: str, data: str, arms: list[str], epochs: int) -> dict[str, int]:
    """How many epochs of each arm take the time of so many of the base's."""
    path = costs_file(network, data)
    relative = read_json(path)["relative"] if path.is_file() else {}
    missing = sorted({_timed(arm) for arm in arms} - set(relative))
    if missing:
        raise UserError(
            f"{str(path)!r} has no time of {', '.join(missing)}: measure it by --cost --network {network} --data {data}"
        )
    return {arm: max(1, round(epochs / relative[_timed(arm)])) for arm in arms}


def _timed(arm: str) -> str:
    return STUDY.arm(arm).costs_as or arm


def section() -> str:
    """The tables of the page, between its markers."""
    parts = [START]
    for path in sorted(STUDY.folder.glob("*.json")):
        if path.name.startswith(("cost-", "step-cost")):
            continue
        runs = read_json(path)["runs"]
        first = runs[0]
        machines: dict[str, dict[str, None]] = {}
        for one in runs:
            machines.setdefault(hardware(one), {})[f"`{one['arm']}`"] = None
        trained = "; ".join(f"{', '.join(arms)}: {machine}" for machine, arms in machines.items())
        r = first["recipe"]
        costs = read_json(costs_file(first["network"], first["data"]))
        parts += [
            f"**{first['network']} on {first['data']}**. `{first['arm']}`: {r['epochs']} epochs, batch {r['batch_size']}, "
            f"{r['optimizer']} with lr {r['lr']:g} and {r['schedule']} schedule, weight decay {r['weight_decay']:g}, label "
            f"smoothing {r['label_smoothing']:g}, averaged weights ({r['ema_decay']:g}), {r['precision']}. The others got as many "
            f"epochs as take that time; an epoch of `base` takes {costs['seconds_per_epoch_of_50000']:.0f} s alone on the "
            f"machine. Trained on: {trained}.",
            as_table(STUDY, path),
        ]
    return "\n\n".join([*parts, *filter(None, [step_cost.section()]), END])


def main() -> int:
    """Returns the exit status."""
    options = parser(STUDY, "per_hour", __doc__, epochs=12, seed=0)
    options.add_argument("--network", default="resnet_global_tiny_cifar", help="default %(default)s")
    options.add_argument("--data", default="cifar100", help="default %(default)s")
    options.add_argument("--cost", action="store_true", help="measure the seconds of an epoch of the arms")
    options.add_argument("--rounds", type=int, default=3, help="of --cost; default %(default)s")
    args = options.parse_args()

    def command(until: float) -> None:
        if args.rounds < 1:
            raise UserError("--rounds must be 1 or more")
        if args.cost:
            path = measure_costs(args.network, args.data, args.data_dir, arms=args.arms, rounds=args.rounds)
            print(f"wrote {path}")
        elif args.collect:
            for path in collect(STUDY, args.runs):
                print(f"wrote {path}")
            put(PAGE, section())
        else:
            ended = work(
                STUDY, args.network, args.data, data_dir=args.data_dir, runs=args.runs, seeds=args.seeds,
                epochs=epochs_for(args.network, args.data, args.arms, args.epochs),
                group=f"{args.network}-{args.data}-{args.epochs}", until=until,
            )  # fmt: skip
            print(f"{ended} training(s) ended")

    return run(STUDY, args, command)


if __name__ == "__main__":
    sys.exit(main())
