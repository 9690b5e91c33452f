"""From words to a command's arguments; what does not fit is one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro

from ..errors import UserError

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)

# what the parser says, and what is meant
PLAINER = (
    (
        r"Error parsing (\S+): no type matching (.*?) could be instantiated from \[(.*?)\]\..*",
        r"\1 \3 does not fit: it takes \2",
    ),
    (r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1 \2 does not fit"),
    (r"Error parsing (\S+):", r"\1:"),
    (r"invalid literal for int\(\) with base 10: ('[^']*')", r"\1 is not a whole number"),
    (r"could not convert string to float: ('[^']*')", r"\1 is not a number"),
    (r"\[/?[a-z ]+\]", ""),
    (r"it takes INT\|\{INT INT\}", "it takes one number, or height and width"),
    (r"it takes \{(.*?)\}", r"it takes \1"),
)


def parsed(arguments: type, command: str, words: Sequence[str]) -> Any:
    """An instance of the dataclass `arguments` for `globalcnn COMMAND WORDS`.

    Help ends in SystemExit as usual; a word that does not fit is a `UserError` of one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(arguments, prog=f"globalcnn {command}", args=list(words), config=CONFIG)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{in_one_line(said.getvalue())} (globalcnn {command} --help)") from stop


def in_one_line(box: str) -> str:
    """What the parser's box says above its first rule.

    >>> in_one_line("╭─ Value error ──╮\\n│ Error parsing    │\\n│ --seed           │\\n│ ──── │\\n│ More │")
    'Error parsing --seed'
    """
    lines: list[str] = []
    for line in box.splitlines()[1:]:  # the first is the box's title
        text = line.strip(" │|")  # without UTF-8 the box is drawn in ASCII
        if re.fullmatch(r"[─╰╯-]{4,}", text):
            if lines:
                break
        elif text:
            lines.append(text)
    text = " ".join(" ".join(lines).split())
    for pattern, plain in PLAINER:
        text = re.sub(pattern, plain, text)
    return text or "the arguments do not fit"
