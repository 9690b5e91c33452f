"""Finding truncated shards before training, by the end of each file."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence

TAIL = 1024  # a .tar file ends with two blocks of 512 zeros


def damaged_shards(paths: Sequence[str]) -> tuple[str, ...]:
    """A message for each truncated shard: no end mark, and its members cannot be listed to the end."""
    return tuple(message for path in paths if (message := _damage(path)) is not None)


def _damage(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL, 0))
            if size >= TAIL and not any(file.read()):
                return None
        with tarfile.open(path, "r:") as archive:  # headers alone: the images are skipped
            last = archive.getmembers()[-1:]
        if last and last[0].offset_data + last[0].size <= size:
            return None
        reason = "it ends within a file"
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    return f"the shard {path!r} is damaged, cut short or unreadable ({reason}): replace it"
