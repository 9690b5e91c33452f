"""`globalcnn info`: layers, parameters, multiply-adds, depth and receptive field of one network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from torch import nn

from ..errors import UserError
from ..measure import Counts, count, depth, receptive_field
from ..models import create_model, list_models, model_info
from .console import count as short
from .console import say, table


@dataclass(frozen=True)
class Args:
    """Show what a network is made of and what it costs, for one image.

    Multiply-adds come in three columns: of convolutions and linear layers; by the paper's counting (conv and
    its bias, 2 per BatchNorm element, average pooling, linear); all, which is the paper's counting and the
    multiplies of the PDE solve that it leaves out.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Name of the network, one of this library's or of timm's."""
    num_classes: int | None = None
    """Size of the output. Default: that of the published dataset."""
    in_chans: int | None = None
    """Input channels. Default: those of the published dataset."""
    image_size: tuple[int, int] | None = None
    """Height and width of the input. Default: the published ones."""
    layers: bool = True
    """Whether to list every layer."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def run(args: Args) -> None:
    """Build the network, count, print."""
    model = create_model(args.model, num_classes=args.num_classes, in_chans=args.in_chans)
    size = input_size(args.model, model, args.in_chans, args.image_size)
    counts = count(model, size)
    field = receptive_field(model, size)
    facts: dict[str, Any] = {
        "model": args.model,
        "input": list(size),
        "params": counts.params,
        "macs": counts.macs,
        "macs_paper": counts.macs_paper,
        "macs_total": counts.macs_total,
        "macs_pde": counts.macs_pde,
        "depth": depth(model, size),
        "receptive_field": [field.height, field.width],
        "receptive_field_is_whole_image": field.whole,
    }
    if args.json:
        say(json.dumps({**facts, "layers": [asdict(layer) for layer in counts.layers]}, indent=1))
        return
    if args.layers:
        _print_layers(counts)
    table(
        f"{args.model}, input {'x'.join(map(str, size))}" + _note(args.model),
        ("what", "exact", "short"),
        [
            ("parameters", counts.params, short(counts.params)),
            ("multiply-adds: convolution and linear", counts.macs, short(counts.macs)),
            ("multiply-adds: the paper's counting", counts.macs_paper, short(counts.macs_paper)),
            ("multiply-adds: all, with the solve", counts.macs_total, short(counts.macs_total)),
            ("  of which the PDE solve", counts.macs_pde, short(counts.macs_pde)),
            ("depth: weighted layers on the longest path", facts["depth"], ""),
            (
                "receptive field of the last feature map's centre",
                f"{field.height} x {field.width}",
                "whole image" if field.whole else "",
            ),
        ],
    )


def input_size(
    name: str, model: nn.Module, in_chans: int | None, image_size: tuple[int, int] | None
) -> tuple[int, int, int]:
    """(C, H, W) of the input that figures are given for."""
    config: Any = getattr(model, "pretrained_cfg", {})  # timm's description of its own models
    channels, height, width = model_info(name).input_size if name in list_models() else config["input_size"]
    if image_size is not None:
        height, width = image_size
        if height < 1 or width < 1:
            raise UserError(f"--image-size {height} {width}: both must be >= 1")
    return in_chans or channels, height, width


def _note(name: str) -> str:
    return "  (reconstruction)" if name in list_models() and model_info(name).reconstruction else ""


def _print_layers(counts: Counts) -> None:
    table(
        "layers that carry parameters or cost",
        ("layer", "kind", "output", "params", "conv+linear", "paper", "solve"),
        [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.output_shape)),
                layer.params,
                layer.macs,
                layer.macs_paper,
                layer.macs_pde,
            )
            for layer in counts.layers
            if layer.params or layer.macs_paper or layer.macs_pde
        ],
    )
