"""Writing files so that nothing of the user's is lost: aside first, then moved into place."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, move it into place.

    The move is atomic, so a reader (or a killed process) sees the old file or the new one, never half of one.
    The temporary name keeps the suffix of `path`, because writers such as matplotlib choose the format by it.
    A file that was there keeps its permissions, a link its target. Folders on the way are made. A path that
    cannot be written is a `UserError` before the block begins.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with written_aside(Path(d) / "a.txt") as part:
    ...         _ = part.write_text("whole")
    ...     (Path(d) / "a.txt").read_text()
    'whole'
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(_permissions(target))  # mkstemp makes files private; an output should look like any other
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _permissions(target: Path) -> int:
    """Those that `target` has, or those of any new file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with written_aside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not a JSON file: {error}") from error
