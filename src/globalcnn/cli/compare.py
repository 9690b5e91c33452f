"""`globalcnn compare`: several networks by one recipe, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..data import DataSource
from ..errors import UserError
from ..files import read_json, remove_left_aside, write_json
from ..measure import environment
from ..models import shown_name
from ..train import Recipe
from ..train.comparison import Compared, compare, judged_by, run_folder
from ..train.setting_up import checked_device, checked_seed
from ..viz import plot_comparison
from .console import count, milliseconds, percent, say, say_notes, table
from .options import DataOptions, RecipeName, RecipeOptions, network_source, resolve_recipe
from .reporting import TrainingReporter
from .teaching import note_left_out

JSON, PICTURE = "compare.json", "compare.png"


@dataclass(frozen=True)
class Args:
    """Train several networks by the same recipe with several seeds, and compare them.

    Prints a table of test accuracy (mean and spread over the seeds), parameters, multiply-adds (of
    convolutions, linear layers and the PDE) and latency measured side by side; writes compare.json,
    compare.png and one run folder per training into --out.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """The networks: names as in `globalcnn list` or of timm's, my_net.py:build, package.module:function."""
    images: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    recipe: RecipeName = "modern"
    changes: Annotated[RecipeOptions, tyro.conf.arg(name="")] = field(default_factory=RecipeOptions)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every network is trained once with each."""
    confusion: tuple[int, int] | None = None
    """Also count how often the classes with these two numbers are taken for each other."""
    out: Path = Path("runs/compare")
    """Folder for the results and the run folders."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue a stopped comparison in --out."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the comparison in --out."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def run(args: Args) -> None:
    """Compare, print, write."""
    if not args.models:
        raise UserError("compare needs the names of at least one network; see `globalcnn list`")
    sources = [network_source(text) for text in args.models]
    labels = [source.label for source in sources]
    if len(set(labels)) != len(labels):
        raise UserError(f"compare {' '.join(labels)}: name each network once")
    recipe = resolve_recipe(args.recipe, args.models[0], args.changes, args.images.data)
    note_left_out(args.recipe)
    for seed in args.seeds:
        checked_seed(seed)
    checked_device(args.device)
    check_place(args.out, resume=args.resume, overwrite=args.overwrite)
    data = args.images.load(validation=recipe.validation)
    _check_pair(args.confusion, data)
    about = {
        "models": labels,
        "data": data.name,
        "recipe": recipe.as_dict(),
        "seeds": list(args.seeds),
    }
    prepare_out(args.out, about, resume=args.resume, overwrite=args.overwrite)
    say(f"comparing {', '.join(map(shown_name, labels))} on {data!r}")
    say_notes(data)
    entries = compare(
        sources,
        data,
        recipe,
        seeds=args.seeds,
        out=args.out,
        device=args.device,
        resume=args.resume,
        notes={"data_options": args.images.describe()},
        reporter=lambda label: TrainingReporter(label=label),
    )
    print_comparison(entries, data.name, recipe, pair=args.confusion)
    figures = [e.figures() for e in entries]
    if args.confusion is not None:
        for figure, entry in zip(figures, entries, strict=True):
            figure["confusions_between"] = list(args.confusion)
            figure["confusions"] = list(entry.confusions(*args.confusion))
    write_json(
        args.out / JSON,
        {**about, "judged_by": judged_by(recipe), "results": figures, "environment": environment()},
    )
    plot_comparison(
        figures, args.out / PICTURE, title=f"{data.name}, {recipe.epochs} epochs, seeds {_list(args.seeds)}"
    )
    say(f"wrote {args.out / JSON} and {args.out / PICTURE}")


def _check_pair(pair: tuple[int, int] | None, data: DataSource) -> None:
    classes = len(data.classes)
    if pair is not None and (pair[0] == pair[1] or not all(0 <= c < classes for c in pair)):
        raise UserError(f"--confusion {pair[0]} {pair[1]} must be two different classes of 0..{classes - 1}")


def prepare_out(out: Path, about: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """A folder for the comparison `about`: new, or of the same comparison to resume, or one to replace."""
    filled = check_place(out, resume=resume, overwrite=overwrite)
    plan = out / "plan.json"
    remove_left_aside(out, (JSON, PICTURE, "plan.json"))
    if filled and resume:
        if not plan.is_file():
            raise UserError(f"--out {str(out)!r} holds no comparison to resume; choose another")
        before = read_json(plan)
        changed = [k for k in about if not isinstance(before, dict) or before.get(k) != about[k]]
        if changed:
            raise UserError(f"the comparison in {str(out)!r} was another one: {', '.join(changed)} differ")
    elif filled:
        _clear(out, plan)
    write_json(plan, about)


def check_place(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds a comparison; `UserError` unless one may start or continue there."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    try:
        filled = out.is_dir() and any(out.iterdir())
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {str(out)!r} is a file; choose another")
    except OSError as error:
        raise UserError(f"cannot read --out {str(out)[:200]!r}: {error.strerror or error}") from error
    if resume and not filled:
        raise UserError(
            f"there is no comparison in {str(out)!r} to resume: without --resume a new one starts there"
        )
    if filled and not (resume or overwrite):
        raise UserError(
            f"--out {str(out)!r} is not empty: --resume continues it, --overwrite replaces it, "
            "or choose another"
        )
    return filled


def _clear(out: Path, plan: Path) -> None:
    """Remove what an earlier comparison left, run folders included; files of others stay."""
    if not plan.is_file():
        raise UserError(f"--out {str(out)!r} holds other files than a comparison's; choose another")
    before = read_json(plan)
    if not isinstance(before, dict) or not all(isinstance(before.get(k), list) for k in ("models", "seeds")):
        raise UserError(f"{str(plan)!r} is not the plan of a comparison; choose another --out")
    for model in before["models"]:
        for seed in before["seeds"]:
            folder = run_folder(out, str(model), seed)
            for file in folder.glob("*") if folder.is_dir() else ():
                if file.is_file():
                    file.unlink()
    for name in (JSON, PICTURE):
        (out / name).unlink(missing_ok=True)


def print_comparison(
    entries: Sequence[Compared], data: str, recipe: Recipe, *, pair: tuple[int, int] | None = None
) -> None:
    """The table of a comparison."""
    batches = list(entries[0].latencies)
    columns = ["network", "test accuracy", "params", "multiply-adds"]
    columns += [f"time, batch {b}" for b in batches]
    if pair is not None:
        columns.insert(2, f"confusions {pair[0]}/{pair[1]}")
    rows = []
    for e in entries:
        spread = "" if e.spread is None else f" ± {100 * e.spread:.2f}"
        row = [
            shown_name(e.model),
            percent(e.mean) + spread,
            count(e.params),
            count(e.macs),
        ]
        row += [milliseconds(e.latencies[b].median) for b in batches]
        if pair is not None:
            each = e.confusions(*pair)
            row.insert(2, f"{sum(each) / len(each):.1f}" + (f" ({_list(each)})" if len(each) > 1 else ""))
        rows.append(row)
    caption = f"accuracy of {judged_by(recipe)}; {len(entries[0].seeds)} seed(s); time per batch, median"
    table(f"{data}, {recipe.epochs} epochs", columns, rows, caption=caption)


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
