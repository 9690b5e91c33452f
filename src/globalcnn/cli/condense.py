"""`globalcnn condense`: a smaller and faster network from a CNN that repeats its blocks."""

from __future__ import annotations

import os

import torch
from torch import nn

from ..condense import Plan, apply
from ..condense.text import COLUMNS, remarks, rows
from ..errors import UserError
from ..models import Card, load_with_card, make_card, save_weights
from .condense_args import Args, is_checkpoint, planned, timed_images
from .condense_training import condense_and_train
from .console import say, table
from .networks import build_named, height_and_width

__all__ = ["Args", "run"]


def run(args: Args) -> None:
    """Plan or read the plan, show it; then write what was asked for, or train it."""
    _check(args)
    if not args.plan_only and args.out is not None and args.out.suffix != ".safetensors":
        condense_and_train(args, show)
        return
    network, card = _network(args)
    size = height_and_width(args.image_size) or card.image_size
    if args.plan is not None:
        found = Plan.load(args.plan)
    else:
        found = planned(args, network, timed_images(args, card.in_chans, size))
    show(found)
    if args.plan_only:
        if args.out is not None:
            found.save(args.out)
            say(f"wrote {args.out}; take it: globalcnn condense {args.network} --plan {args.out} --out ...")
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
    if args.timing_batch < 1:
        raise UserError(f"--timing-batch {args.timing_batch} must be at least 1")
    if args.out is None:
        if not args.plan_only:
            raise UserError(
                "give --out FOLDER to condense and train, --out FILE.safetensors for the condensed network "
                "without training, or --plan-only for the plan"
            )
        return
    if args.plan_only and args.out.suffix != ".json":
        raise UserError(f"--out {str(args.out)!r} must end in .json")
    if not args.plan_only and args.out.suffix == ".json":
        raise UserError(
            f"--out {str(args.out)!r} must end in .safetensors, or be a folder; --plan-only writes a plan"
        )
    if args.out.suffix not in (".json", ".safetensors"):
        return
    if args.resume:
        raise UserError(
            f"--resume continues a training, and --out {str(args.out)!r} is a file: nothing is trained"
        )
    if os.path.exists(args.out) and not args.overwrite:
        raise UserError(f"{str(args.out)!r} is there already: choose another --out, or give --overwrite")


def _is_given(args: Args, name: str) -> bool:
    return bool(getattr(args, name) != getattr(Args, name))


def _network(args: Args) -> tuple[nn.Module, Card]:
    """The network, and a card that says what images it is for."""
    if is_checkpoint(args.network):
        return load_with_card(args.network, model=args.model, trust_source=args.trust_source)
    named = build_named(
        args.network,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        image_size=args.image_size,
    )
    channels, *size = named.input_size
    return named.model, make_card(named.model, image_size=(size[0], size[1]), in_chans=channels)
