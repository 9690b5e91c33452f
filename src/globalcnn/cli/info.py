"""`globalcnn info`: layers, parameters, multiply-adds, depth and receptive field of one network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from ..errors import UserError
from ..measure import Counts, ReceptiveField, count, depth, receptive_field
from ..models import create_model, is_reconstruction, list_models, model_info, settings_for_size, shown_name
from ..nn.equilibrium import Equilibrium
from ..nn.solving import SolveCounts, solve_counts
from .console import count as short
from .console import say, table


@dataclass(frozen=True)
class Args:
    """Show what a network is made of and what it costs, for one image.

    Multiply-adds come in three columns: of convolutions and linear layers; by the paper's counting (conv and
    its bias, 2 per BatchNorm element, average pooling, linear); all, which is the paper's counting and the
    multiplies of the PDE solve that it leaves out. Of a network that solves, what is spent outside the solve
    and per evaluation of its function, how many evaluations one forward took, and the residual it left; the
    weights are untrained, of seed 0.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # how many evaluations a solver takes depends on the weights
        sized = {} if args.image_size is None else settings_for_size(args.model, *args.image_size)
        model = create_model(args.model, num_classes=args.num_classes, in_chans=args.in_chans, **sized)
    size = input_size(args.model, model, args.in_chans, args.image_size)
    counts = count(model, size)
    solve = solve_counts(model, counts.layers)
    residual = _residual(model)  # of the pass that was counted
    field, no_field = _receptive_field(model, size)
    facts: dict[str, Any] = {
        "model": args.model,
        "reconstruction": is_reconstruction(args.model),
        "input": list(size),
        "params": counts.params,
        "macs": counts.macs,
        "macs_paper": counts.macs_paper,
        "macs_total": counts.macs_total,
        "macs_pde": counts.macs_pde,
        "depth": depth(model, size),
        "receptive_field": None if field is None else [field.height, field.width],
        "receptive_field_is_whole_image": None if field is None else field.whole,
        "receptive_field_note": no_field,
        "solve": None if solve is None else _solve_facts(solve, residual),
    }
    if args.json:
        say(json.dumps({**facts, "layers": [asdict(layer) for layer in counts.layers]}, indent=1))
        return
    if args.layers:
        _print_layers(counts)
    table(
        f"{shown_name(args.model)}, input {'x'.join(map(str, size))}",
        ("what", "exact", "short"),
        [
            ("parameters", counts.params, short(counts.params)),
            ("multiply-adds: convolution and linear", counts.macs, short(counts.macs)),
            ("multiply-adds: the paper's counting", counts.macs_paper, short(counts.macs_paper)),
            ("multiply-adds: all, with the solve", counts.macs_total, short(counts.macs_total)),
            ("  of which the PDE solve", counts.macs_pde, short(counts.macs_pde)),
            *_solve_rows(facts["solve"]),
            ("depth: weighted layers on the longest path", facts["depth"], ""),
            (
                "receptive field of the last feature map's centre",
                "-" if field is None else f"{field.height} x {field.width}",
                "whole image" if field is not None and field.whole else "",
            ),
        ],
    )
    if no_field:
        say(f"  no receptive field: {no_field}")


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


def _receptive_field(model: nn.Module, size: tuple[int, int, int]) -> tuple[ReceptiveField | None, str]:
    """The field, or why there is none: a transformer has tokens for a feature map."""
    try:
        return receptive_field(model, size), ""
    except UserError as error:
        return None, str(error).split(": give features=")[0]


def _residual(model: nn.Module) -> float | None:
    """The largest relative residual that a solve of the last forward left; None where none is known."""
    found = [m.residual for m in model.modules() if isinstance(m, Equilibrium) and m.residual is not None]
    return max((r.max().item() for r in found), default=None)


def _solve_facts(solve: SolveCounts, residual: float | None) -> dict[str, Any]:
    return {
        "macs_outside": solve.outside,
        "macs_per_evaluation": solve.per_evaluation,
        "evaluations": solve.measured,
        "evaluations_published": solve.evaluations,
        "residual": residual,
    }


def _solve_rows(solve: dict[str, Any] | None) -> list[tuple[str, object, str]]:
    if solve is None:
        return []
    outside, each = solve["macs_outside"], solve["macs_per_evaluation"]
    rows: list[tuple[str, object, str]] = [
        ("conv. and linear outside the solve", outside, short(outside)),
        ("conv. and linear per evaluation", each, short(each)),
        ("evaluations in the forward counted here", solve["evaluations"], ""),
        ("evaluations that published counts stand for", solve["evaluations_published"], ""),
    ]
    if solve["residual"] is not None:
        rows.append(("relative residual after them", f"{solve['residual']:.2e}", ""))
    return rows


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
