"""`globalcnn train`: train a network and keep the run in a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..files import read_json
from ..models import shown_name
from ..models.shipped import full_path
from ..models.weights import checksum, read_weights
from ..train import RunResult, build_for, start_from, train
from ..train.folder import RUN, STATE, check_out
from ..train.setting_up import checked_device, checked_seed
from ..viz import plot_curves
from .console import percent, say, say_notes
from .options import DataOptions, RecipeName, RecipeOptions, network_source, resolve_recipe
from .reporting import TrainingReporter
from .teaching import TeacherOptions, note_left_out


@dataclass(frozen=True)
class Args:
    """Train a network: one of this library's, any of timm's, or your own.

    Classes and input channels follow the data unless given. The run folder holds the resolved recipe,
    versions and seed (run.json), figures per epoch (metrics.jsonl, curves.png), log.txt, the last weights and
    those best on the held-out images (safetensors), the training state, and at the end summary.json with the
    test accuracy. Several processes: torchrun --nproc-per-node N -m globalcnn train ...
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The network: a name as in `globalcnn list` or of timm's, my_net.py:build (a function in a file that
    returns a torch.nn.Module), or package.module:function."""
    images: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    recipe: RecipeName = "modern"
    changes: Annotated[RecipeOptions, tyro.conf.arg(name="")] = field(default_factory=RecipeOptions)
    set: tuple[str, ...] = ()
    """KEY=VALUE ...: settings of the network's constructor or arguments of the function that builds it."""
    init: Path | None = None
    """Start from the weights of this run folder or .safetensors file, or from those that come with the
    library under this name, such as resnet32_cifar-cifar10 (fine-tuning). Another number of classes starts
    the classifier anew; 1 and 3 input channels are adapted to each other."""
    learning: Annotated[TeacherOptions, tyro.conf.arg(name="")] = field(default_factory=TeacherOptions)
    num_classes: int | None = None
    """Size of the output. Default: the classes of the data; needed for wds: whose _info.json lists none."""
    in_chans: int | None = None
    """Input channels. Default: those of the data."""
    seed: int = 0
    """Of weights, order and augmentation; on a CPU the same seed gives the same weights, bit for bit."""
    out: Path | None = None
    """Run folder. Default: runs/MODEL-DATA-seedSEED."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out where it stopped; with more --epochs where the learning rate of an epoch
    does not depend on their number (any schedule but cosine)."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run in --out."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def run(args: Args) -> None:
    """Train, then print the accuracy and the path of each output."""
    source = network_source(args.model, args.set)
    recipe = resolve_recipe(args.recipe, args.model, args.changes, args.images.data)
    note_left_out(args.recipe, {"teacher": args.learning.teacher, "init": args.init})
    out = args.out or Path("runs") / f"{_slug(source.label)}-{_slug(args.images.data)}-seed{args.seed}"
    checked_seed(args.seed)
    checked_device(args.device)
    check_out(out, resume=args.resume, overwrite=args.overwrite)  # before much data is read
    data = args.images.load(validation=recipe.validation, seed=args.seed, num_classes=args.num_classes)
    model = build_for(
        source, data, recipe, seed=args.seed, num_classes=args.num_classes, in_chans=args.in_chans
    )
    notes: dict[str, Any] = {"data_options": args.images.describe()}
    if args.init is not None:
        resumed = args.resume and (out / STATE).is_file()
        notes |= _initial(args.init, before=read_json(out / RUN) if resumed else None)
        if not resumed:
            for line in start_from(model, args.init, classes=data.classes):
                say(f"init: {line}")
    say_notes(data)
    objective, told = args.learning.objective(data, recipe)
    notes |= told
    opening = (
        f"training {shown_name(source.label)} on {data!r} by the recipe {recipe.name!r} for {recipe.epochs} "
        f"epochs; run folder {out}"
    )
    with TrainingReporter(folder=out, opening=opening) as reporter:
        result = train(
            model,
            data,
            recipe,
            objective=objective,
            out=out,
            seed=args.seed,
            device=args.device,
            resume=args.resume,
            overwrite=args.overwrite,
            notes=notes,
            reporter=reporter,
        )
    if int(os.environ.get("RANK", "0")) == 0:
        plot_curves(result.epochs, out / "curves.png", title=f"{shown_name(source.label)} on {data.name}")
        _say_result(result, out)


def _initial(path: Path, *, before: Any) -> dict[str, Any]:
    """What run.json tells of the initial weights.

    before: its content where the run is resumed; its checksum stays, for the file may hold others by now.
    """
    if before is None:
        weights, _ = read_weights(os.fspath(path))
        return {"init": full_path(path), "init_sha256": checksum(weights)}
    kept = before.get("init_sha256") if isinstance(before, dict) else None
    return {"init": full_path(path)} | ({} if kept is None else {"init_sha256": kept})


def _say_result(result: RunResult, out: Path) -> None:
    for message in result.left_out:
        say(f"left out of the evaluation: {message}")
    if result.test is None:
        say("the data has no test images to evaluate on")
    else:
        say(f"test accuracy after the last epoch: {percent(result.test.accuracy)}")
    if result.best_test is not None:
        say(
            f"test accuracy of epoch {result.best_epoch}, the best on the held-out images: "
            f"{percent(result.best_test.accuracy)}"
        )
    say(f"run folder: {out}")


def _slug(name: str) -> str:
    kind, _, path = name.partition(":")
    words = f"{Path(kind).stem}-{Path(path).stem}" if path else kind
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words)[:100]
