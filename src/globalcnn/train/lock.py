"""One training per run folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import UserError
from ..files import cannot_write

try:
    import fcntl
except ImportError:  # Windows; a second training in the folder is then not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # some network file systems


class FolderLock:
    """Holds a folder from `FolderLock(path)` until `release()` or the end of the process, however it ends.

    The operating system holds the lock, so that a file left behind by a killed process locks nothing.
    Raises `UserError` if another process holds it, and names that process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._handle: int | None = None
        if fcntl is not None:
            self._handle = self._take()

    def _take(self) -> int | None:
        while True:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
                os.close(handle)
                if error.errno in WITHOUT_LOCKS:
                    return None
                raise UserError(
                    f"{str(self._path.parent)!r} is being trained in by another process"
                    f"{f' ({holder})' if holder else ''}: wait until it ends, or choose another --out"
                ) from error
            if self._is_ours(handle):
                break
            os.close(handle)  # the holder before has just removed the file: take a new one
        with contextlib.suppress(OSError):  # who holds it is only for the message; the disk may be full
            os.ftruncate(handle, 0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(
                handle, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode(), 0
            )
        return handle

    def _is_ours(self, handle: int) -> bool:
        try:
            here = os.stat(self._path)
        except FileNotFoundError:
            return False
        held = os.fstat(handle)
        return (here.st_ino, here.st_dev) == (held.st_ino, held.st_dev)

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(handle)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> Any:
        raise TypeError("a lock belongs to one process")
