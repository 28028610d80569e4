"""Tell whether the process that holds a claim is alive, by its lock on a file of its own beside the cache.

The kernel drops the lock with the process, however it ended. A process id doesn't do: in a container that was
started again it is the same one, and in another container of the same machine it is somebody else's.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # where there are no such locks, only a claim's time tells
    fcntl = None  # type: ignore[assignment]

__all__ = ["Owner", "is_alive"]


class Owner:
    """A unique name for one opening of a cache, and its locked file; `close` removes the file.

    Files of owners that are gone are removed on the way.
    """

    def __init__(self, cache: Path) -> None:
        for path in cache.parent.glob(_file(cache, "*").name):
            is_alive(cache, path.suffixes[-2][1:])
        self.name = uuid.uuid4().hex
        self._path = _file(cache, self.name)
        self._handle = _locked(self._path)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def is_alive(cache: Path, name: str) -> bool:
    """Whether an owner may still be there; certain where the file system has locks."""
    path = _file(cache, name)
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        if not _lock(handle, wait=False):
            return True
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)


def _file(cache: Path, name: str) -> Path:
    return cache.with_name(f"{cache.name}.{name}.owner")


def _locked(path: Path) -> int:
    """A new file, open and locked; made again if somebody took it for a dead owner's before it was locked."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        _lock(handle, wait=True)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Take the lock; False if somebody has it, or where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
