"""Atomic writing of files: to a temporary name first, then moved into place."""

from __future__ import annotations

import errno
import glob
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

RANDOM_LETTERS = 8  # that tempfile puts into a name


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, move it into place.

    The move is atomic, so a reader (or a killed process) sees the old file or the new one, never half of one.
    The temporary name keeps the suffix of `path`, because writers such as matplotlib choose the format by it.
    An existing file keeps its permissions, a link its target. Missing parent folders are made. A path that
    cannot be written is a `UserError` before the block begins; a disk that becomes full in the block is one
    too, and then the existing file stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     with atomic_write(Path(d) / "a.txt") as part:
    ...         _ = part.write_text("whole")
    ...     (Path(d) / "a.txt").read_text()
    'whole'
    """
    if "\0" in str(path):
        raise UserError(f"cannot write {str(path)!r}: its name has a null character")
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise UserError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(_permissions(target))  # mkstemp makes files private; an output should look like any other
        os.replace(part, target)
    except Exception as error:
        if storage_failed(error):
            raise cannot_write(path, error) from error
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def cannot_write(path: str | os.PathLike[str], error: BaseException) -> UserError:
    """The one error for a path that cannot be written: disk full, read-only, name too long, no permission."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    hint = ""
    if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and storage_failed(error)):
        hint = "; files written before are complete: free some space and try again"
    return UserError(f"cannot write {_shortened(path)!r}: {reason}{hint}")


def storage_failed(error: BaseException) -> bool:
    """Whether an error means that the file system refused a write.

    Besides OSError these are the errors of writers that are not Python's: safetensors, PyTorch's zip files.
    """
    if isinstance(error, UserError):
        return False
    words = ("os error ", "PytorchStreamWriter failed", "inline_container", "unexpected pos")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def _shortened(path: str | os.PathLike[str]) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def remove_left_aside(folder: Path, names: Iterable[str]) -> None:
    """Remove what `atomic_write` left in `folder` for files of these names when it was killed.

    Only a process that alone writes these files may call it.
    """
    for name in names:
        stem, suffix = os.path.splitext(name)
        for part in folder.glob(f".{glob.escape(stem)}.{'?' * RANDOM_LETTERS}{glob.escape(suffix)}"):
            part.unlink(missing_ok=True)


def _permissions(target: Path) -> int:
    """The permissions of `target`, or those of a new file."""
    if os.path.exists(target):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def as_list(value: Any) -> list[Any]:
    """What a file holds as one value, or as a list where there are several."""
    return value if isinstance(value, list) else [value]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {_shortened(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not a JSON file: {error}") from error
