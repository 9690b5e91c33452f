"""`globalcnn eval`: how good a trained network is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..data import DataSource
from ..errors import UserError
from ..files import write_json
from ..measure import environment
from ..models import Card, load_with_card, shown_name
from ..models.weights import find_weights
from ..train import evaluate
from ..train.setting_up import make_accelerator
from .console import percent, say, table
from .options import DataOptions


@dataclass(frozen=True)
class Args:
    """Evaluate a trained network on the test images (or another split)."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder (its best weights, else its last) or a .safetensors file of `globalcnn train`."""
    images: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    model: str | None = None
    """Name that the network must have; the checkpoint itself says which it is."""
    split: str = "test"
    """test, val or train."""
    batch_size: int = 256
    """Images per step."""
    validation: float = 0.0
    """Share of the training images held out as the split val."""
    seed: int = 0
    """Of the split; give the one of the training for --split val."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: Path | None = None
    """Write the figures, with versions, to this file."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file given by --json."""


def run(args: Args) -> None:
    """Load, evaluate, print."""
    if args.json is not None and args.json.exists() and not args.overwrite:
        raise UserError(f"{str(args.json)!r} is there already: choose another --json, or give --overwrite")
    model, card = load_with_card(args.checkpoint, model=args.model)
    data = args.images.load(validation=args.validation, seed=args.seed, num_classes=card.num_classes)
    check_fit(card, data)
    device = make_accelerator(args.device, "no").device
    loader = data.loader(args.split, args.batch_size, shuffle=False, device=device)
    result = evaluate(model.to(device), loader, card.num_classes)
    rows = [("images", result.images), ("accuracy", percent(result.accuracy)), ("loss", f"{result.loss:.4f}")]
    if result.top5 is not None:
        rows.insert(2, ("accuracy within the first five", percent(result.top5)))
    table(f"{shown_name(card.label)} on {data.name}, {args.split}", ("figure", "value"), rows)
    classes = [
        (name, percent(share), sum(row))
        for name, share, row in zip(data.classes, result.per_class, result.confusion, strict=True)
    ]
    if len(classes) <= 25:
        table("by class", ("class", "accuracy", "images"), classes)
    if args.json is not None:
        write_json(
            args.json,
            {
                "checkpoint": str(find_weights(args.checkpoint)),
                "model": {"model": card.label, **card.to_json()},
                "data": data.name,
                "split": args.split,
                **asdict(result),
                "environment": environment(),
            },
        )
        say(f"wrote {args.json}")


def check_fit(card: Card, data: DataSource) -> None:
    """A `UserError` unless the network's channels and classes are those of the data."""
    problems = card.misfits(len(data.classes), data.in_chans)
    if problems:
        raise UserError(
            f"the checkpoint of {card.label!r} does not fit the data {data.name!r}: "
            f"{' and '.join(problems)}. "
            "Give --data that it was trained for, or train a network on this data"
        )
