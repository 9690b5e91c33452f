"""The commands in docs/training-large.md are understood, and its table is that of the recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from globalcnn.cli import evaluate, train
from globalcnn.cli.options import resolve_recipe
from globalcnn.reproduce import RECIPES

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "training-large.md").read_text(encoding="utf-8")
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)


def commands() -> list[list[str]]:
    """The words after `globalcnn` of each indented command."""
    lines = re.sub(r"\\\n\s*", "", TEXT).splitlines()
    shell = [shlex.split(line) for line in lines if line.startswith("    ") and "globalcnn " in line]
    return [words[words.index("globalcnn") + 1 :] for words in shell if "globalcnn" in words]


def test_there_are_commands():
    assert [words[0] for words in commands()] == ["train", "train", "eval", "train", "train"]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_a_command_is_understood(words):
    module = {"train": train, "eval": evaluate}[words[0]]
    args = tyro.cli(module.Args, args=words[1:], config=CONFIG)
    if words[0] == "train":
        recipe = resolve_recipe(args.recipe, args.model, args.changes, args.images.data)
        assert recipe.name == "efficientnet_b0_global_imagenet"
        assert (recipe.precision, recipe.channels_last) == ("bf16", True)


def test_single_options_are_understood():
    options = [shlex.split(text) for text in re.findall(r"`(--[a-z-]+ [^`]+)`", TEXT)]
    options = [words for words in options if not words[0].startswith(("--nproc", "--recipe"))]
    assert len(options) >= 10
    for words in options:
        tyro.cli(train.Args, args=["digits_conv", *words], config=CONFIG)


def test_the_table_of_recipes():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in RECIPES if name.endswith("_imagenet")]
    for name, cells in rows:
        r = RECIPES[name]
        rate = f"{r.lr}" + (", noisy from 42 to 90 % of the epochs" if r.lr_noise else "")
        assert cells.split(" | ") == [
            f"8 x {r.batch_size}",
            rate,
            f"{r.decay_rate} every {r.decay_epochs} epochs",
            f"{r.epochs}",
            f"{r.random_erasing}",
        ]
