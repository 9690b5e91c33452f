"""`globalcnn env`: what is installed and what can run here."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tyro

from ..measure import environment
from ..ops import BACKENDS
from .console import say, table


@dataclass(frozen=True)
class Args:
    """Show versions, hardware, and which backends of the operator can run here."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def run(args: Args) -> None:
    """Print the environment."""
    backends = {b.name: {"about": b.about, "unavailable": b.unavailable()} for b in BACKENDS.values()}
    facts = environment()
    if args.json:
        say(json.dumps({**facts, "backends": backends}, indent=1))
        return
    table("environment", ("what", "value"), [(k, "-" if v is None else v) for k, v in facts.items()])
    table(
        "backends of the PDE operator",
        ("backend", "here", "about"),
        [(n, b["unavailable"] or "available", b["about"]) for n, b in backends.items()],
    )
