"""From words to a command's arguments; what does not fit is one line."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ..errors import UserError

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)

# what the parser says, and what is meant
PLAINER: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (
        r"Error parsing (\S+): no type matching (.*?) could be instantiated from \[(.*?)\]\..*",
        lambda m: f"{m[1]} {_words(m[3])}: it takes {_kind(m[2])}",
    ),
    (
        r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]",
        lambda m: f"{m[1]} {_words(m[2])}: not all of these are of the kind that it takes",
    ),
    (
        r"Error parsing (\S+): Could not parse arguments \[(.*)\] into tuple type .*",
        lambda m: f"{m[1]} {_words(m[2])}: these are not of the kind that it takes",
    ),
    (r"Missing from globalcnn \S+: (.*\(required\))", lambda m: f"required and not given: {_names(m[1])}"),
    (r"Missing value for argument '(\S+)'\. Expected (\d+) values?\.", r"\1 lacks a value; it takes \2"),
    (r"Unrecognized options: (.*)", r"unknown options: \1"),
    (r"Error parsing (\S+):", r"\1:"),
    (r"invalid literal for int\(\) with base 10: ('[^']*')", r"\1 is not a whole number"),
    (r"could not convert string to float: ('[^']*')", r"\1 is not a number"),
    (r"\[/?[a-z ]+\]", ""),
)
KINDS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "INT|{INT INT}": "one number, or height and width, in whole pixels",
    "INT INT": "two whole numbers",
    "FLOAT FLOAT": "two numbers",
    "[INT [INT ...]]": "whole numbers",
    "[FLOAT [FLOAT ...]]": "numbers",
}


def _kind(parser: str) -> str:
    """The parser's notation of a type in words."""
    whole = re.fullmatch(r"\{(.*)\}", parser)
    inner = whole[1] if whole else parser
    return KINDS.get(inner, inner)


def _words(listed: str) -> str:
    """The words of a printed list as they were typed: `'1', 'x'` is `1 x`."""
    try:
        typed = " ".join(map(str, ast.literal_eval(f"[{listed}]")))
    except (ValueError, SyntaxError):  # a word that the box has broken into two lines
        typed = listed
    return typed or "has no value"


def _names(described: str) -> str:
    """The arguments alone, without what the parser says of each."""
    each = re.findall(r"(?:^|\(required\) )(--\S+ \S+|\S+)", described)
    return ", ".join(each)


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
