"""`globalcnn verify`: the weights that come with the library, evaluated against their claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..data import DataSource, load_data
from ..errors import UserError, unknown_name
from ..models import load_with_card
from ..models.shipped import shipped_card, shipped_names, weights_folder
from ..train import as_trained, evaluate
from ..train.setting_up import checked_device, make_accelerator
from .console import percent, say, table

TOLERANCE = 0.0002  # of accuracy: two of 10,000 images, for other processors round otherwise


@dataclass(frozen=True)
class Args:
    """Evaluate the trained weights that come with the library on the test images, against their claims.

    Exit status 1 where an accuracy is more than 0.02 points below its claim.
    """

    rows: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ROW ...]")] = ()
    """Which weights, as network-data. Default: all."""
    data_dir: Path | None = None
    """Folder that holds mnist, cifar10 and cifar100, as far as the rows need them."""
    download: tyro.conf.FlagCreatePairsOff[bool] = False
    """Download those that are not there into --data-dir."""
    batch_size: int = 256
    """Images per step."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def accuracy_of(weights: Path, data: DataSource, batch_size: int, *, device: torch.device) -> float:
    """Of trained weights on the test images, in float32."""
    model, card = load_with_card(weights)
    data, numbers = as_trained(card, data)
    loader = data.loader("test", batch_size, shuffle=False, device=device)
    return evaluate(model.to(device), loader, card.num_classes, labels_as=numbers).accuracy


def _sources(cards: Mapping[str, Mapping[str, Any]], args: Args) -> dict[str, DataSource]:
    """The data that the rows need, all of it before the first is evaluated."""
    sources: dict[str, DataSource] = {}
    for name, about in cards.items():
        if about["data"] in sources:
            continue
        try:
            sources[about["data"]] = load_data(about["data"], data_dir=args.data_dir, download=args.download)
        except UserError as error:
            others = [row for row, card in cards.items() if card["data"] != about["data"]]
            some = f"; {name} needs it, not all rows do: globalcnn verify ROW checks one" if others else ""
            raise UserError(f"{error}{some}") from error
    return sources


def run(args: Args) -> None:
    """Evaluate, print, fail where a claim does not hold."""
    checked_device(args.device)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} must be at least 1")
    folder = weights_folder()
    if folder is None:
        raise UserError("this installation came without trained weights")
    for row in args.rows:
        if row not in shipped_names():
            raise unknown_name("row", row, shipped_names())
    device = make_accelerator(args.device, "no").device
    cards = {name: shipped_card(name, folder) for name in dict.fromkeys(args.rows or shipped_names())}
    sources = _sources(cards, args)
    rows, broken = [], []
    for number, (name, about) in enumerate(cards.items(), start=1):
        claim, data = about["test_accuracy"][str(about["shipped_seed"])], sources[about["data"]]
        say(f"{number} of {len(cards)}: {name} on {data.size('test'):,} test images")
        accuracy = accuracy_of(folder / f"{name}.safetensors", data, args.batch_size, device=device)
        holds = accuracy >= claim - TOLERANCE
        told, measured = percent(claim), percent(accuracy)
        rows.append((name, told, measured, "holds" if holds else "does not hold"))
        if not holds:
            broken.append(name)
    table(
        "trained weights on the test images", ("weights", "claimed accuracy", "measured", "the claim"), rows
    )
    if broken:
        say(f"claims that do not hold: {', '.join(broken)}")
        raise SystemExit(1)
