"""`globalcnn condense`: what a network repeats, a plan of what takes its place, the network that it makes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from ..condense import Plan, apply, plan
from ..condense.text import COLUMNS, remarks, rows
from ..errors import UserError
from ..models import Card, load_with_card, make_card, save_weights
from .console import say, table
from .networks import ImageSize, build_named, height_and_width


@dataclass(frozen=True)
class Args:
    """Condense a network: blocks that repeat each other give way to one Global layer, or another block.

    --plan-only shows the plan, and writes it to --out as JSON, which can be edited. Otherwise the plan (that
    of --plan, or a new one) is applied, and the condensed network is written to --out: what stays keeps its
    weights, the new blocks have fresh ones, so train it afterwards. The file says how it is built.
    """

    network: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL_OR_CHECKPOINT")]
    """A weights file or run folder; or a name as in `globalcnn list` or of timm's, my_net.py:build,
    package.module:function, with weights of seed 0."""
    plan_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the plan and change nothing."""
    plan: Path | None = None
    """A plan to apply, as --plan-only wrote it. Default: a new one."""
    out: Path | None = None
    """The file to write: .json of a plan, .safetensors of the condensed network."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace --out if it is there."""
    max_params: int | None = None
    """Parameters that the condensed network may have."""
    max_macs: int | None = None
    """Multiply-adds that it may need for one image."""
    speedup: float | None = None
    """How many times as fast it must be on this machine, measured."""
    block: str = "global"
    """What comes: global, sweeps, norm-act, none."""
    keep: int = 1
    """Blocks that stay of every repetition."""
    seconds: float = 5.0
    """About how long times are measured."""
    batch_size: int = 1
    """Images of the batch that is measured."""
    num_classes: int | None = None
    """Size of the output, of a network by name. Default: the network's own."""
    in_chans: int | None = None
    """Input channels, of a network by name. Default: the network's own."""
    image_size: ImageSize = None
    """Side of the images, or height and width. Default: the network's own."""
    model: str | None = None
    """The network of a checkpoint that does not say how it is built or is not to be believed."""
    trust_source: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build whatever the checkpoint names: only for files of your own."""
    seed: int = 0
    """Of the new blocks' weights."""


def run(args: Args) -> None:
    """Plan or read the plan, show it, write what was asked for."""
    _check(args)
    network, card = _network(args)
    size = height_and_width(args.image_size) or card.image_size
    if args.plan is not None:
        found = Plan.load(args.plan)
    else:
        noise = torch.Generator().manual_seed(0)
        images = torch.randn(args.batch_size, card.in_chans, *size, generator=noise)
        found = plan(
            network,
            images,
            max_params=args.max_params,
            max_macs=args.max_macs,
            speedup=args.speedup,
            block=args.block,
            keep=args.keep,
            seconds=args.seconds,
        )
    show(found)
    if args.plan_only:
        if args.out is not None:
            found.save(args.out)
            say(f"wrote {args.out}; apply it: globalcnn condense {args.network} --plan {args.out} --out FILE")
        return
    assert args.out is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        small = apply(network, found)
    new = make_card(
        small,
        image_size=size,
        in_chans=card.in_chans,
        classes=card.classes,
        mean=card.mean,
        std=card.std,
    )
    save_weights(args.out, small.state_dict(), new)
    say(f"wrote {args.out}: {new.label}; its new blocks are not trained yet")


def show(found: Plan) -> None:
    """Print a plan as a table, with what stays below."""
    example = "x".join(map(str, found.example))
    table(f"{found.network}, example {example}", COLUMNS, rows(found))
    for line in remarks(found):
        say(f"  {line}")


def _check(args: Args) -> None:
    if args.plan is not None and args.plan_only:
        raise UserError("--plan-only makes a plan and --plan applies one: give one of them")
    chosen = [n for n in ("max_params", "max_macs", "speedup", "block", "keep") if _is_given(args, n)]
    if args.plan is not None and chosen:
        option = "--" + chosen[0].replace("_", "-")
        raise UserError(f"{option} is for a new plan, and --plan gives one: leave one out, or edit the plan")
    if args.out is None:
        if not args.plan_only:
            raise UserError(
                "give --out FILE.safetensors for the condensed network, or --plan-only for the plan"
            )
    else:
        suffix = ".json" if args.plan_only else ".safetensors"
        if args.out.suffix != suffix:
            raise UserError(f"--out {str(args.out)!r} must end in {suffix}")
        if os.path.exists(args.out) and not args.overwrite:
            raise UserError(f"{str(args.out)!r} is there already: choose another --out, or give --overwrite")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} must be at least 1")


def _is_given(args: Args, name: str) -> bool:
    return bool(getattr(args, name) != getattr(Args, name))


def _network(args: Args) -> tuple[nn.Module, Card]:
    """The network, and a card that says what images it is for."""
    if os.path.exists(args.network):
        return load_with_card(args.network, model=args.model, trust_source=args.trust_source)
    is_path = args.network.endswith((".safetensors", ".pt", ".pth")) or os.sep in args.network
    if is_path and ":" not in args.network:
        raise UserError(f"there is no checkpoint {args.network!r}")
    named = build_named(
        args.network,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        image_size=args.image_size,
    )
    channels, *size = named.input_size
    return named.model, make_card(named.model, image_size=(size[0], size[1]), in_chans=channels)
