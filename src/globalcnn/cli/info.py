"""`globalcnn info`: layers, parameters, multiply-adds, depth and receptive field of one network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from torch import nn

from ..errors import UserError
from ..measure import Counts, ReceptiveField, count, depth, receptive_field
from ..nn.implicit import ImplicitCounts, implicit_counts
from ..nn.implicit.equilibrium import Equilibrium
from .console import count as short
from .console import say, table
from .networks import ImageSize, build_named


@dataclass(frozen=True)
class Args:
    """Show what a network is made of and what it costs, for one image.

    Multiply-adds are those of convolutions, linear layers and the PDE; elementwise operations are those of
    norms and average pooling, which are counted apart. Of an implicit network (ODE, equilibrium): what is
    spent outside its implicit layers and per evaluation, how many evaluations one forward took, and the
    residual it left; the weights are untrained, of seed 0.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The network: a name as in `globalcnn list` or of timm's, my_net.py:build, package.module:function."""
    num_classes: int | None = None
    """Size of the output. Default: the network's own."""
    in_chans: int | None = None
    """Input channels. Default: the network's own."""
    image_size: ImageSize = None
    """Side of the input, or its height and width. Default: the network's own."""
    layers: bool = True
    """Whether to list every layer."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def run(args: Args) -> None:
    """Build the network, count, print."""
    network = build_named(
        args.model, num_classes=args.num_classes, in_chans=args.in_chans, image_size=args.image_size
    )
    model, size = network.model, network.input_size
    counts = count(model, size)
    solve = implicit_counts(model, counts.layers)
    residual = _residual(model)  # of the pass that was counted
    field, no_field = _receptive_field(model, size)
    facts: dict[str, Any] = {
        "model": network.name,
        "reconstruction": network.reconstruction,
        "input": list(size),
        "params": counts.params,
        "macs": counts.macs,
        "macs_pde": counts.macs_pde,
        "elementwise": counts.elementwise,
        "depth": depth(model, size),
        "receptive_field": None if field is None else [field.height, field.width],
        "receptive_field_is_whole_image": None if field is None else field.whole,
        "receptive_field_note": no_field,
        "implicit": None if solve is None else _implicit_facts(solve, residual),
    }
    if args.json:
        say(json.dumps({**facts, "layers": [asdict(layer) for layer in counts.layers]}, indent=1))
        return
    if args.layers:
        _print_layers(counts)
    table(
        f"{network.shown}, input {'x'.join(map(str, size))}",
        ("what", "exact", "short"),
        [
            ("parameters", counts.params, short(counts.params)),
            ("multiply-adds", counts.macs, short(counts.macs)),
            ("  of which the PDE", counts.macs_pde, short(counts.macs_pde)),
            ("elementwise operations, apart", counts.elementwise, short(counts.elementwise)),
            *_implicit_rows(facts["implicit"]),
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


def _receptive_field(model: nn.Module, size: tuple[int, int, int]) -> tuple[ReceptiveField | None, str]:
    """The field, or why there is none: a transformer has tokens for a feature map."""
    try:
        return receptive_field(model, size), ""
    except UserError as error:
        return None, str(error).split(": give features=")[0]


def _residual(model: nn.Module) -> float | None:
    """The largest relative residual that an implicit layer left; None where none is known."""
    found = [m.residual for m in model.modules() if isinstance(m, Equilibrium) and m.residual is not None]
    return max((r.max().item() for r in found), default=None)


def _implicit_facts(solve: ImplicitCounts, residual: float | None) -> dict[str, Any]:
    return {
        "macs_outside": solve.outside,
        "macs_per_evaluation": solve.per_evaluation,
        "evaluations": solve.measured,
        "evaluations_published": solve.evaluations,
        "residual": residual,
    }


def _implicit_rows(implicit: dict[str, Any] | None) -> list[tuple[str, object, str]]:
    if implicit is None:
        return []
    outside, each = implicit["macs_outside"], implicit["macs_per_evaluation"]
    rows: list[tuple[str, object, str]] = [
        ("multiply-adds outside the implicit layers", outside, short(outside)),
        ("multiply-adds per evaluation", each, short(each)),
        ("evaluations in the forward counted here", implicit["evaluations"], ""),
        ("evaluations in published counts", implicit["evaluations_published"], ""),
    ]
    if implicit["residual"] is not None:
        rows.append(("relative residual after them", f"{implicit['residual']:.2e}", ""))
    return rows


def _print_layers(counts: Counts) -> None:
    table(
        "layers that carry parameters or cost",
        ("layer", "kind", "output", "params", "multiply-adds", "of the PDE", "elementwise"),
        [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.output_shape)),
                layer.params,
                layer.macs,
                layer.macs_pde,
                layer.elementwise,
            )
            for layer in counts.layers
            if layer.params or layer.macs or layer.elementwise
        ],
    )
