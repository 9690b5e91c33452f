"""`globalcnn convert-checkpoint`: weights of the authors' released code into a file of this library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from ..errors import UserError
from ..models import (
    Card,
    NamedSource,
    check_model_name,
    create_model,
    list_models,
    model_info,
    save_weights,
    shown_name,
)
from ..models.weights import load_without_code, read_weights
from ..reproduce import load_authors_state_dict
from .console import say

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


@dataclass(frozen=True)
class Args:
    """Convert a checkpoint of the authors' released code into a .safetensors file for `globalcnn eval`.

    The file is opened without running any code in it. A state dict inside a dictionary (under state_dict,
    model, or net) is found; a prefix "module." is removed.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The authors' file (.pth, .pt, .tar, or .safetensors)."""
    model: str
    """Name of the network that it holds, as in `globalcnn list`."""
    out: Path
    """The .safetensors file to write."""
    num_classes: int | None = None
    """Classes that it was trained for. Default: those of the published dataset."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace --out if it is there."""


def run(args: Args) -> None:
    """Read, convert, write."""
    check_model_name(args.model)
    if args.model not in list_models():
        raise UserError(
            f"--model {args.model} is a model of timm; only this library's networks are converted"
        )
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {str(args.out)!r} must end in .safetensors")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{str(args.out)!r} is there already: choose another --out, or give --overwrite")
    info = model_info(args.model)
    model = create_model(args.model, num_classes=args.num_classes)
    load_authors_state_dict(model, read_state_dict(args.checkpoint))
    channels, height, width = info.input_size
    card = Card(
        source=NamedSource(args.model),
        num_classes=args.num_classes or info.num_classes,
        in_chans=channels,
        image_size=(height, width),
        mean=info.mean,
        std=info.std,
    )
    save_weights(args.out, model.state_dict(), card)
    say(f"wrote {args.out}: {shown_name(args.model)}, {len(model.state_dict())} entries")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running anything in it."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    content = load_without_code(path)
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{str(path)!r} holds no state dict (names to tensors), also not under {WRAPPERS}")
    return content
