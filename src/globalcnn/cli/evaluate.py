"""`globalcnn eval`: accuracy of a trained network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..data.source import check_split
from ..errors import UserError
from ..files import read_json, write_json
from ..measure import environment
from ..measure.probe import check_runs
from ..models import load_with_card, shown_name
from ..models.shipped import shipped_training
from ..models.weights import find_weights
from ..train import Evaluation, as_trained, evaluate
from ..train.folder import RUN
from ..train.setting_up import checked_device, make_accelerator
from .console import percent, say, say_notes, table
from .options import DataOfRun

MOST_CLASSES_LISTED = 25


@dataclass(frozen=True)
class Args:
    """Evaluate a trained network on the test images (or another split) of its data or of other data.

    What it was trained with is used: image size, mean and standard deviation, and the classes by their names.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder (its best weights, else its last), a .safetensors file of `globalcnn train`, or the name
    of weights that come with the library, such as resnet32_cifar-cifar10."""
    images: Annotated[DataOfRun, tyro.conf.arg(name="")] = field(default_factory=DataOfRun)
    model: str | None = None
    """The network, where the checkpoint does not say how it is built or is not to be believed: a name,
    my_net.py:build or package.module:function."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    ema: bool | None = None
    """Of a file that holds weights and their moving average, whether to take the average."""
    split: str = "test"
    """test, val or train."""
    batch_size: int = 256
    """Images per step."""
    validation: float | None = None
    """Share of the training images held out as the split val. Default: that of the training."""
    seed: int | None = None
    """Of the split. Default: that of the training."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: Path | None = None
    """Write the figures, with versions, to this file."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file given by --json."""


def run(args: Args) -> None:
    """Load, evaluate, print."""
    if args.json is not None and os.path.exists(args.json) and not args.overwrite:
        raise UserError(f"{str(args.json)!r} is there already: choose another --json, or give --overwrite")
    check_split(args.split)
    checked_device(args.device)
    model, card = load_with_card(
        args.checkpoint, model=args.model, trust_source=args.trust_source, ema=args.ema
    )
    told = run_of(args.checkpoint)
    data = args.images.of(told, card.image_size).load(
        validation=_held_out(args.validation, told),
        seed=_seed(args.seed, told),
        num_classes=len(card.classes) or card.num_classes,
    )
    say_notes(data)
    data, numbers = as_trained(card, data)
    if numbers is not None:
        say("note: the classes of the data are matched with those of the training by name")
    check_runs(model, (data.in_chans, *data.image_size))
    device = make_accelerator(args.device, "no").device
    loader = data.loader(args.split, args.batch_size, shuffle=False, device=device, skip_damaged=True)
    result = evaluate(model.to(device), loader, card.num_classes, labels_as=numbers)
    for message in loader.damaged:
        say(f"left out: {message}")
    if not result.images:
        raise UserError(f"none of the images of {data.name!r}, {args.split} could be read")
    classes = card.classes or data.classes
    _say_result(result, f"{shown_name(card.label)} on {data.name}, {args.split}", classes)
    if args.json is not None:
        write_json(
            args.json,
            {
                "checkpoint": str(find_weights(args.checkpoint)),
                "model": {"name": card.label, **card.to_json()},
                "data": data.name,
                "split": args.split,
                **asdict(result),
                "left_out": list(loader.damaged),
                "environment": environment(),
            },
        )
        say(f"wrote {args.json}")


def _say_result(result: Evaluation, title: str, classes: tuple[str, ...]) -> None:
    rows = [("images", result.images), ("accuracy", percent(result.accuracy)), ("loss", f"{result.loss:.4f}")]
    if result.top5 is not None:
        rows.insert(2, ("accuracy within the first five", percent(result.top5)))
    table(title, ("figure", "value"), rows)
    by_class = [
        (name, percent(share), sum(row))
        for name, share, row in zip(classes, result.per_class, result.confusion, strict=False)
        if sum(row)
    ]
    if len(by_class) <= MOST_CLASSES_LISTED:
        table("by class", ("class", "accuracy", "images"), by_class)


def run_of(checkpoint: Path) -> Mapping[str, Any] | None:
    """The content of the run.json next to the weights, if there is one.

    Of weights that come with the library what it would say.
    """
    weights = find_weights(checkpoint)
    path = weights.parent / RUN
    if not path.is_file():
        return shipped_training(weights)
    told = read_json(path)
    return told if isinstance(told, dict) else None


def _held_out(given: float | None, run: Mapping[str, Any] | None) -> float:
    if given is not None:
        return given
    recipe = (run or {}).get("recipe")
    value = recipe.get("validation") if isinstance(recipe, dict) else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _seed(given: int | None, run: Mapping[str, Any] | None) -> int:
    value = (run or {}).get("seed", 0) if given is None else given
    return value if isinstance(value, int) else 0
