"""Output of the command line: rich tables and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import DataSource

PLAIN_WIDTH = 400  # a table takes what it needs of it


class _Console(Console):
    """One that leaves a reader who has gone to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, error: bool = False) -> Console:
    """A console for standard output (or error) as it is now; wide and plain where it is no terminal."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return _Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def say(text: str = "") -> None:
    """One line to standard output, without markup."""
    console().print(text, markup=False)


def say_notes(data: DataSource) -> None:
    """The notes of a data source, a line each."""
    for note in data.notes:
        say(f"note: {note}")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> None:
    """Print a table; columns of figures are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    view = Table(
        title=Text(title),
        caption=Text(caption) if caption else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for i, column in enumerate(columns):
        figures = i > 0 and all(row[i][:1] in "-.0123456789" for row in cells)
        view.add_column(column, justify="right" if figures else "left", no_wrap=i == 0, overflow="fold")
    for row in cells:
        view.add_row(*map(Text, row))  # not markup: names of classes and files may hold brackets
    console().print(view)


def count(number: float | None) -> str:
    """A count as people read it: 161850 as 161.8K.

    >>> [count(n) for n in (522, 161850, 14779008, 4.1e9)]
    ['522', '161.8K', '14.78M', '4.1B']
    """
    if number is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:g}"


def percent(share: float | None) -> str:
    """A share of 1 in per cent.

    >>> percent(0.91934)
    '91.93 %'
    """
    return "-" if share is None else f"{100 * share:.2f} %"


def milliseconds(seconds: float | None) -> str:
    """A time in milliseconds, three digits.

    >>> milliseconds(0.0123456)
    '12.3 ms'
    """
    return "-" if seconds is None else f"{1e3 * seconds:.3g} ms"
