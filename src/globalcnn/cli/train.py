"""`globalcnn train`: train a network and keep the run in a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..models import check_model_name, shown_name
from ..train import train
from ..viz import plot_curves
from .console import percent, say
from .options import DataOptions, RecipeName, RecipeOptions, resolve_recipe
from .reporting import TrainingReporter


@dataclass(frozen=True)
class Args:
    """Train a network: one of this library's or any of timm's.

    Classes and input channels follow the data unless given. The run folder holds the resolved recipe,
    versions and seed (run.json), figures per epoch (metrics.jsonl, curves.png), log.txt, the last weights and
    those best on the held-out images (safetensors), the training state, and at the end summary.json with the
    test accuracy. Several processes: torchrun --nproc-per-node N -m globalcnn train ...
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Name of the network, as in `globalcnn list`."""
    images: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    recipe: RecipeName = "modern"
    changes: Annotated[RecipeOptions, tyro.conf.arg(name="")] = field(default_factory=RecipeOptions)
    num_classes: int | None = None
    """Size of the output. Default: the classes of the data; needed for wds: whose _info.json lists none."""
    in_chans: int | None = None
    """Input channels. Default: those of the data."""
    seed: int = 0
    """Of weights, order and augmentation; on a CPU the same seed gives the same weights, bit for bit."""
    out: Path | None = None
    """Run folder. Default: runs/MODEL-DATA-seedSEED."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the run in --out where it stopped."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in --out."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def run(args: Args) -> None:
    """Train, then say how good the network is and where everything lies."""
    check_model_name(args.model)
    data_name = args.images.data
    recipe = resolve_recipe(args.recipe, args.model, args.changes, data_name)
    out = args.out or Path("runs") / f"{args.model}-{_slug(data_name)}-seed{args.seed}"
    data = args.images.load(validation=recipe.validation, seed=args.seed, num_classes=args.num_classes)
    settings = {k: v for k in ("num_classes", "in_chans") if (v := getattr(args, k)) is not None}
    first = int(os.environ.get("RANK", "0")) == 0
    opening = (
        f"training {shown_name(args.model)} on {data!r} by the recipe {recipe.name!r} for {recipe.epochs} "
        f"epochs; run folder {out}"
    )
    with TrainingReporter(folder=out, opening=opening) as reporter:
        result = train(
            args.model,
            data,
            recipe,
            out=out,
            seed=args.seed,
            device=args.device,
            resume=args.resume,
            overwrite=args.overwrite,
            settings=settings,
            reporter=reporter,
        )
    if not first:
        return
    plot_curves(result.epochs, out / "curves.png", title=f"{shown_name(args.model)} on {data.name}")
    say(f"test accuracy after the last epoch: {percent(result.test.accuracy)}")
    if result.best_test is not None:
        say(
            f"test accuracy of epoch {result.best_epoch}, the best on the held-out images: "
            f"{percent(result.best_test.accuracy)}"
        )
    say(f"run folder: {out}")


def _slug(name: str) -> str:
    kind, _, path = name.partition(":")
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(path).stem)}" if path else kind
