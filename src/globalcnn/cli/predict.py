"""`globalcnn predict`: the classes of image files by a trained network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import UserError
from ..models import load_with_card, shown_name
from ..train import Prediction, predict
from ..train.setting_up import checked_device, make_accelerator
from .console import percent, say, table


@dataclass(frozen=True)
class Args:
    """Say what a trained network takes images for: the names of the most likely classes, with probabilities.

    Images are read, resized and normalised as in training. PNG, JPEG, BMP, GIF, PPM, TIFF and WebP are read.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder (its best weights, else its last), a .safetensors file of `globalcnn train`, or the name
    of weights that come with the library, such as resnet32_cifar-cifar10."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """Image files."""
    model: str | None = None
    """The network, where the checkpoint does not say how it is built or is not to be believed: a name,
    my_net.py:build or package.module:function."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    ema: bool | None = None
    """Of a file that holds weights and their moving average, whether to take the average."""
    top: int = 3
    """How many classes to name of each image."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


def run(args: Args) -> None:
    """Load, look at the images, print."""
    if not args.images:
        raise UserError("predict needs at least one image file: globalcnn predict RUN IMAGE ...")
    if args.top < 1:
        raise UserError(f"--top {args.top} must be at least 1")
    checked_device(args.device)
    model, card = load_with_card(
        args.checkpoint, model=args.model, trust_source=args.trust_source, ema=args.ema
    )
    device = make_accelerator(args.device, "no").device
    found = list(predict(model, card, args.images, device=device))
    if args.json:
        say(json.dumps([_as_json(one, args.top) for one in found], indent=1))
        return
    table(
        f"by {shown_name(card.label)}",
        ("image", "class", "probability"),
        [
            (one.path if i == 0 else "", name, percent(share))
            for one in found
            for i, (name, share) in enumerate(one.classes[: args.top])
        ],
    )


def _as_json(one: Prediction, top: int) -> dict[str, object]:
    classes = [{"class": name, "probability": share} for name, share in one.classes[:top]]
    return {"image": one.path, "classes": classes}
