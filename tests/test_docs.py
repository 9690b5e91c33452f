"""The documentation is true: its Python runs, its commands are understood, its links lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from globalcnn.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)])
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)


def blocks(page, language):
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page):
    """Words after `globalcnn` of each command in a `console` block or an indented line."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    fenced = [
        line
        for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    found = []
    for line in (*fenced, *indented):
        match = re.match(r"\s*\$?\s*(?:[A-Z_]+=\S+ )*(?:torchrun .* -m )?globalcnn (.*)", line)
        if match:
            words = shlex.split(match[1], comments=True)
            if words and words[0] in COMMANDS:
                found.append(words)
    return found


def by_name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=by_name)
def test_python_on_the_page_runs(page, tmp_path):
    """All blocks of a page in sequence, in one fresh process and an empty folder."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", script.name],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


ALL_COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def test_there_are_commands_and_python():
    assert len(ALL_COMMANDS) >= 8
    assert sum(bool(blocks(p, "python")) for p in PAGES) >= 3


@pytest.mark.parametrize(
    ("page", "words"), ALL_COMMANDS, ids=lambda v: by_name(v) if isinstance(v, Path) else " ".join(v)[:50]
)
def test_a_command_on_the_page_is_understood(page, words):
    module = importlib.import_module(f"globalcnn.cli.{COMMANDS[words[0]][0]}")
    tyro.cli(module.Args, args=words[1:], config=CONFIG)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{by_name(page)} points to {target}"
