"""`globalcnn list`: which networks there are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ..errors import UserError, near_names
from ..models import list_models, model_info
from ..models.registry import RECONSTRUCTION
from ..models.shipped import shipped_weights
from .console import say, table


@dataclass(frozen=True)
class Args:
    """List the networks, with what they were published on and what they cannot do.

    And which trained weights come with the library: other commands know them as NETWORK-DATA, such as
    resnet32_cifar-cifar10.
    """

    pattern: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*"
    """Shell-style pattern such as "*global*", or part of a name."""
    family: str | None = None
    """Only one family, such as resnet or digits."""
    timm: tyro.conf.FlagCreatePairsOff[bool] = False
    """Include timm's own models, which build, count and train here too."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


def run(args: Args) -> None:
    """Print the list."""
    names = list_models(args.pattern, family=args.family, include_timm=args.timm)
    if not names:
        near = near_names(args.pattern.strip("*"), list_models(include_timm=args.timm))
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"no model matches {args.pattern!r}{hint}. `globalcnn list` shows all")
    entries = [_entry(name) for name in names]
    if args.json:
        say(json.dumps(entries, indent=1))
        return
    table(
        f"{len(entries)} networks",
        ("name", "family", "published on", "input", "classes", "weights", "cannot", "about"),
        [
            (
                e["name"],
                e["family"],
                e["dataset"],
                "x".join(map(str, e["input_size"])),
                e["num_classes"] or "-",
                ", ".join(e["weights"]) or "-",
                ", ".join(e["cannot"]) or "-",
                e["about"],
            )
            for e in entries
        ],
    )


def _entry(name: str) -> dict[str, Any]:
    if name not in list_models():
        return {
            "name": name, "family": "timm", "dataset": "-", "input_size": [], "num_classes": None,
            "weights": [], "cannot": {}, "reconstruction": False, "about": "a model of timm",
        }  # fmt: skip
    info = model_info(name)
    about = f"{info.about} {RECONSTRUCTION}" if info.reconstruction else info.about
    return {
        "name": name,
        "family": info.family,
        "dataset": info.dataset,
        "input_size": list(info.input_size),
        "num_classes": info.num_classes,
        "weights": list(shipped_weights(name)),
        "cannot": dict(info.cannot),
        "reconstruction": info.reconstruction,
        "about": about,
    }
