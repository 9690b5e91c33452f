"""`globalcnn condense` with a folder: the condensed network is trained until it is nearly as accurate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from ..condense import Plan, Recovered, Recovery, recover
from ..condense.budget import Budget
from ..condense.recover import check_classes
from ..condense.recover_folder import PICTURE, check_free
from ..data import DataSource
from ..errors import UserError
from ..models import Card, NamedSource, load_with_card, parse_source, shown_name
from ..train import Recipe, Reporter, suited_to
from ..train.setting_up import checked_device, checked_seed
from ..viz import plot_recovery
from .condense_args import Args, is_checkpoint, planned, timed_images
from .console import count, milliseconds, percent, say, say_notes, table
from .evaluate import run_of
from .options import DataOptions, given_fields, resolve_recipe
from .reporting import TrainingReporter


def condense_and_train(args: Args, show: Callable[[Plan], None]) -> None:
    """Plan, condense, train, report; `show` prints the plan."""
    assert args.out is not None
    budget = Budget(args.max_params, args.max_macs, args.speedup)
    recovery = Recovery(
        repair_epochs=args.repair_epochs,
        repair_lr=args.repair_lr,
        loss=args.distill,
        temperature=args.temperature,
        views=args.views,
        feature_weight=args.feature_weight,
        feature_share=args.feature_share,
        few_images=args.few_images,
    )
    checked_seed(args.seed)
    checked_device(args.device)
    check_free(args.out, resume=args.resume, overwrite=args.overwrite, plan=args.plan)
    plan = None if args.plan is None else Plan.load(args.plan)
    given = _given(args)
    model, data = given.model, given.data
    say_notes(data)
    example = timed_images(args, data.in_chans, data.image_size)

    def shown() -> Plan:
        made = planned(args, model.cpu(), example)
        show(made)
        return made

    result = recover(
        model,
        shown if plan is None else plan,
        data,
        given.recipe,
        out=args.out,
        recovery=recovery,
        budget=budget,
        example=example,
        card=given.card,
        seed=args.seed,
        device=args.device,
        resume=args.resume,
        overwrite=args.overwrite,
        notes={
            "data_options": given.options.describe(),
            "planning": {"block": args.block, "keep": args.keep},
        },
        tell=say,
        reporters=_reporter,
    )
    plot_recovery(result.report, args.out / PICTURE, title=f"{shown_name(given.card.label)} on {data.name}")
    _say_result(result)


@dataclass(frozen=True)
class _Given:
    """What is condensed: the trained network, its card, the data with the constants of its training, the
    recipe of the end-to-end phase.
    """

    model: nn.Module
    card: Card
    data: DataSource
    options: DataOptions
    recipe: Recipe


def _given(args: Args) -> _Given:
    if is_checkpoint(args.network):
        model, card = load_with_card(args.network, model=args.model, trust_source=args.trust_source)
        options = args.images.of(run_of(Path(args.network)), card.image_size)
        recipe = _recipe(args, options)
        classes = len(card.classes) or card.num_classes
        data = options.load(validation=recipe.validation, seed=args.seed, num_classes=classes)
        check_classes(card, data)
        if card.mean and card.std:
            data = data.with_constants(card.mean, card.std)
        return _Given(model, card, data, options, recipe)
    source = parse_source(args.network)
    if isinstance(source, NamedSource):
        raise UserError(
            f"{args.network!r} is the name of a network without trained weights, and no file: give a run "
            f"folder or weights file (with --model {args.network} where it does not say how it is built)"
        )
    if args.images.data is None:
        raise UserError("--data is needed: the images that the network was trained on")
    options = DataOptions(**{f.name: getattr(args.images, f.name) for f in fields(DataOptions)})
    recipe = _recipe(args, options)
    data = options.load(validation=recipe.validation, seed=args.seed)
    model = source.build(num_classes=len(data.classes), in_chans=data.in_chans).eval()
    card = Card(
        source=source, num_classes=len(data.classes), in_chans=data.in_chans, image_size=data.image_size
    )
    return _Given(model, card, data, options, recipe)


def _recipe(args: Args, options: DataOptions) -> Recipe:
    """The recipe of the end-to-end phase: SGD and half the usual learning rate, unless given."""
    if args.recipe != "modern":
        return resolve_recipe(args.recipe, "", args.changes, options.data)
    given = given_fields(args.changes)
    recipe = suited_to(Recipe(optimizer=given.get("optimizer", "sgd")), options.data)
    return recipe.replace(**{"lr": recipe.lr / 2, **given})


@contextmanager
def _reporter(phase: str, path: Path) -> Iterator[Reporter]:
    words = {"repair": "repair: new stages learn the features of the original", "end_to_end": "end to end"}
    with TrainingReporter(folder=path, opening=words.get(phase, phase)) as reporter:
        yield reporter


def _say_result(result: Recovered) -> None:
    report = result.report
    rows: list[tuple[Any, ...]] = []
    for name in ("original", "condensed"):
        r = report[name]
        costs = (count(r["params"]), count(r["macs"]), milliseconds(r["seconds"]))
        rows.append((name, percent(r["test"]), percent(r["val"]), *costs))
    columns = ("network", "test", "held out", "parameters", "multiply-adds", f"batch of {report['batch']}")
    table(f"{report['speedup']:.2f} times as fast", columns, rows)
    phases = [(p["phase"], p["epochs"], percent(p["test"]), percent(p["val"])) for p in report["phases"]]
    table("recovery", ("after", "epochs", "test", "held out"), phases)
    say(f"stages chosen by {report['chosen_by']}")
    say(f"condensed network: {result.folder / 'model.safetensors'}; figures: {result.folder / 'report.json'}")
