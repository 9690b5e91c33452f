"""`recover`: from a network and a plan to a condensed network that is nearly as accurate, step by step.

1. The original is evaluated; the plan is applied; the BatchNorm statistics are estimated anew.
2. Repair: all new stages learn the original's features at once, each by itself.
3. Where a speedup is asked for, the stages are chosen by the errors that remained.
4. End to end: labels, the original's logits and, at first, its features before pooling.

Every step is kept in a folder, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import DataSource
from ..errors import UserError, UserTypeError
from ..measure import environment
from ..models import Card
from ..models.weights import checksum
from ..train import Recipe
from ..train.network import card_for, unwrapped
from ..train.run import as_source
from ..train.setting_up import checked_seed
from .applying import check_same_network
from .budget import Budget
from .data import Plan
from .recover_folder import PLAN, CondenseFolder, check_free
from .recover_settings import Recovery
from .recover_steps import Recovered, Reporters, Steps


def recover(
    original: nn.Module,
    plan: Plan | Callable[[], Plan],
    data: Any,
    recipe: Recipe | None = None,
    *,
    out: str | os.PathLike[str],
    recovery: Recovery | None = None,
    budget: Budget | None = None,
    example: torch.Tensor | None = None,
    card: Card | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    notes: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    reporters: Reporters | None = None,
) -> Recovered:
    """Condense `original` by `plan` and train what comes until it is nearly as accurate.

    original: a trained classifier; not changed, but put into eval mode. plan: as `plan` gives it, or a
    function that makes it, which is not called when a run is resumed. data: as in `globalcnn.train`, with the
    classes of the original. recipe: of the end-to-end phase; default `Recipe(optimizer="sgd", lr=0.05)`.
    out: a folder, new or empty unless `resume` or `overwrite`. budget: with a speedup, which stages are
    condensed is chosen among all of the plan, by the errors that remain after the repair; else the plan's own
    choice stays. example: a batch for measuring times; default 64 images of noise. card: of the original's
    weights file, whose classes must be those of the data. notes: for run.json. tell: is given a line for each
    step; reporters: make the reporter of a phase from its name and its folder.

    On a CPU, a killed and resumed run gives the same weights, bit for bit. Raises `UserError` for what does
    not fit.
    """
    recipe = Recipe(optimizer="sgd", lr=0.05) if recipe is None else recipe
    recovery = Recovery() if recovery is None else recovery
    if not isinstance(recipe, Recipe) or not isinstance(recovery, Recovery):
        raise UserTypeError("recipe must be a Recipe, and recovery a Recovery")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("condensing runs in one process: start it without torchrun")
    original = unwrapped(original).eval()
    checked_seed(seed)
    data = as_source(data, recipe, seed)
    folder = Path(out)
    check_free(
        folder, resume=resume, overwrite=overwrite, plan=folder / PLAN if isinstance(plan, Plan) else None
    )
    if card is not None:
        check_classes(card, data)
    own = card_for(original, data, replace(recipe, drop_rate=0.0, drop_path_rate=0.0))
    if own.num_classes != len(data.classes):
        raise UserError(
            f"the network {own.label!r} has {own.num_classes} outputs, and the data {data.name!r} has "
            f"{len(data.classes)} classes: condense it on the data that it was trained on"
        )
    data.check_images()
    if isinstance(plan, Plan):
        check_same_network(original, plan)
    about = {
        "command": "condense",
        "model": {"name": own.label, "weights": checksum(original.state_dict())},
        "data": {**data.identity(), "test": data.size("test")},
        "recipe": recipe.as_dict(),
        "recovery": asdict(recovery),
        "budget": None if budget is None else asdict(budget),
        "plan": _digest(plan) if isinstance(plan, Plan) else None,
        "seed": seed,
        **(notes or {}),
        "environment": environment(),
    }
    with CondenseFolder(folder, about, resume=resume, overwrite=overwrite) as kept:
        run = Steps(
            original=original,
            data=data,
            recipe=recipe,
            recovery=recovery,
            card=own,
            folder=kept,
            seed=seed,
            device=device,
            tell=tell or (lambda _: None),
            reporters=reporters or (lambda phase, path: nullcontext()),  # type: ignore[arg-type, return-value]
        )
        shape = (64, data.in_chans, *data.image_size)
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if example is None else example
        return run.all_steps(plan, budget, batch, about)


def check_classes(card: Card, data: DataSource) -> None:
    """Raise `UserError` unless the classes of the data are those of the network, in the same order."""
    if card.in_chans != data.in_chans:
        raise UserError(
            f"the network {card.label!r} reads {card.in_chans} channels and the data {data.name!r} has "
            f"{data.in_chans}"
        )
    if card.classes and tuple(card.classes) != tuple(data.classes):
        other = next((n for n in data.classes if n not in card.classes), None)
        lacking = next((n for n in card.classes if n not in data.classes), None)
        what = (
            f"the data has {other!r}, which it was not trained on"
            if other is not None
            else f"the data lacks {lacking!r}"
            if lacking is not None
            else "they are the same in another order"
        )
        raise UserError(
            f"the classes of the data {data.name!r} are not those of the network {card.label!r}: {what}; "
            "give the data that it was trained on"
        )


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()
