"""Kill a run at every write, replace and remove, and at random moments, and see that the same run again mends it.

Runs are children made by fork, so that nothing is imported again. What a kill -9 leaves on disk at a write is what the
disk holds when the write is about to begin: an audit hook copies the run's folder at each such event of one run (and
once more with the file just opened and still empty). Every different state found so is a folder in which the same run
is started again. Kills at random moments are real ones, by signal, one after another in one folder.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from surefoot.locks import LOCK
from tests.kills.trees import difference

Run = Callable[[], Any]
"""Works in the current directory, with relative paths, so that it is the same run in any folder."""

_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_RANDOM = 10


@dataclass(frozen=True)
class Kills:
    """How many there were."""

    at_events: int
    at_random: int


def survive(run: Run, folder: Path, start: Path | None = None, every: int = 1) -> Kills:
    """Kill the run at every event and at ten random moments.

    Args:
        start: what every run's folder begins as; empty if None.
        every: 1 takes all states; n every n-th, where the states are too many.

    Raises:
        AssertionError: a run that follows a kill fails, ends with other results than one that was left alone, or
            leaves files that it doesn't.
    """
    whole = _begin(folder / "whole", start)
    began = time.perf_counter()
    _finish(run, whole, "the clean run")
    seconds = time.perf_counter() - began
    states = folder / "states"
    states.mkdir()
    _finish(run, _begin(folder / "watched", start), "the watched run", watch=states)
    assert (found := difference(whole, folder / "watched")) is None, f"two clean runs differ: {found}"
    count = 0
    for state in sorted(states.iterdir())[::every]:
        _mended(run, state, whole, state.name)
        shutil.rmtree(state)
        count += 1
    return Kills(count, _random_kills(run, folder, whole, seconds, start))


def _random_kills(run: Run, folder: Path, whole: Path, seconds: float, start: Path | None) -> int:
    """Ten real kills; a run that ends before its kill is compared, and the next begins from nothing."""
    moments, place = random.Random(str(sorted(path.name for path in whole.iterdir()))), folder / "random"
    _begin(place, start)
    killed = tries = 0
    while killed < _RANDOM and tries < 10 * _RANDOM:  # where the machine is busy, a clean run takes longer than others
        tries += 1
        child = _fork(run, place, None)
        time.sleep(moments.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), (place / "../error.txt").read_text()
        killed += status != 0
        found = difference(whole, place)
        assert status != 0 or found is None, f"after {killed} random kills: {found}"
        if found is None:
            shutil.rmtree(place)
            _begin(place, start)
    if killed:
        _mended(run, place, whole, f"{killed} random kills")
    return killed


def _begin(place: Path, start: Path | None) -> Path:
    if start is None:
        place.mkdir()
    else:
        shutil.copytree(start, place)
    return place


def _mended(run: Run, place: Path, whole: Path, what: str) -> None:
    _finish(run, place, f"the run after {what}")
    assert (found := difference(whole, place)) is None, f"after {what}: {found}"


def _finish(run: Run, place: Path, what: str, watch: Path | None = None) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(_fork(run, place, watch), 0)[1])
    assert status == 0, f"{what} ended with {status}:\n{(place.parent / 'error.txt').read_text()}"


def _fork(run: Run, place: Path, watch: Path | None) -> int:
    """The child's pid; its exit status is 0, or 1 with the error in `error.txt` beside its folder."""
    errors = place.parent.resolve() / "error.txt"
    child = os.fork()
    if child:
        return child
    try:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is shared by all forks: a killed one would keep it for ever
        os.chdir(place)
        with _silence():
            if watch is not None:
                _watch(Path.cwd(), watch.resolve())
            run()
        os._exit(0)
    except BaseException:
        errors.write_text(traceback.format_exc())
        os._exit(1)


@contextmanager
def _silence() -> Iterator[None]:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    yield


def _watch(folder: Path, states: Path) -> None:
    """Copy the folder to `states` at each event in it, if it differs from all copies before."""
    seen: set[str] = set()
    busy = False

    def copy(what: str, opened: Path | None = None) -> None:
        place = states / f"{len(seen):03d} {what}"
        shutil.copytree(folder, place)
        if opened is not None:
            (place / opened.relative_to(folder)).write_bytes(b"")
        digest = _digest(place)
        if digest in seen:
            shutil.rmtree(place)
        seen.add(digest)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if busy or not (writes or event in _EVENTS) or not isinstance(args[0], (str, os.PathLike)):
            return
        path = Path(os.path.abspath(args[0]))
        if not path.is_relative_to(folder):
            return
        busy = True
        try:
            what = f"{event} {path.relative_to(folder)}".replace("/", "⁄")[:120]
            copy(what)
            flags = args[2] if writes else 0
            new = flags & os.O_CREAT and not path.exists()  # O_CREAT alone empties no file
            if path.parent.is_dir() and (new or flags & os.O_TRUNC):
                copy(f"{what}, empty", path)
        finally:
            busy = False

    sys.addaudithook(hook)


def _digest(folder: Path) -> str:
    """Of names and contents; of a temporary only that it is there, since nobody reads what is in it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\.[a-z0-9_]{8}\.tmp(/.*)?$", ".tmp", str(path.relative_to(folder)))
        temporary = ".tmp" in name or path.name == LOCK
        digest.update(name.encode() if temporary or path.is_dir() else name.encode() + path.read_bytes())
    return digest.hexdigest()
