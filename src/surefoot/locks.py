"""Locks that the kernel drops when their process ends, however it ends: `flock` on a file, never a pid in a file."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from surefoot.errors import RunError

__all__ = ["LOCK", "hold", "open_locked", "release"]

LOCK = ".surefoot.lock"
_PATIENCE_S = 2.0
"""A killed study's workers notice after a second that their parent is gone."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What file systems without locks answer; NFS answers EBADF where a directory is locked."""
_handles: set[int] = set()


def _let_go() -> None:
    """In a child made by fork: with its parent's open files it would keep the parent's locks alive."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_let_go)


def open_locked(path: Path, *, create: bool = False, shared: bool = False, unsupported: bool = True) -> int | None:
    """Open a file or directory and lock it, without waiting.

    Args:
        create: the file if it isn't there.
        shared: with others that ask for a shared lock.
        unsupported: whether a file system without locks counts as locked.

    Returns:
        The open file, for `release`; None if another process holds it.

    Raises:
        FileNotFoundError: there is no such file, or there is none any more.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS or not unsupported:
            os.close(handle)
            return None
    _handles.add(handle)
    # Whoever removes a locked file holds its lock: it may be gone, or another file, since it was opened.
    if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
        release(handle)
        raise FileNotFoundError(path)
    return handle


def release(handle: int) -> None:
    """Close a file of `open_locked`, and with it its lock; a child made by fork has done so."""
    if handle in _handles:
        _handles.discard(handle)
        os.close(handle)


@contextmanager
def hold(path: str | Path, *, shared: bool = False) -> Iterator[None]:
    """Hold what the lock file `path` stands for. Who holds it, and since when, is written there for people.

    Two runs that share a directory on purpose hold its lock shared; one that must be alone waits two seconds for it.

    Raises:
        RunError: another process holds it.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle = _wait(place, shared)
    os.ftruncate(handle, 0)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {when}\n".encode(), 0)
    try:
        yield
    finally:
        if handle in _handles:
            _remove_if_last(place, handle, shared)
            release(handle)


def _wait(place: Path, shared: bool) -> int:
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            handle = open_locked(place, create=True, shared=shared)
        except FileNotFoundError:  # its last holder has just removed it, or no file can be made there, as in /proc
            if time.monotonic() >= end:
                raise
            continue
        if handle is not None:
            return handle
        if time.monotonic() >= end:
            raise RunError(f"{place.parent} is in use by {_holder(place)}; wait until it ends, or stop it")
        time.sleep(0.05)


def _holder(place: Path) -> str:
    try:
        return place.read_text().strip() or "another process"
    except OSError:
        return "another process"


def _remove_if_last(place: Path, handle: int, shared: bool) -> None:
    try:
        if shared:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        place.unlink(missing_ok=True)
    except BlockingIOError:
        pass  # others share it
