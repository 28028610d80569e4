"""Closing a file where nobody waits for it: its checkpoint forces the disk, which takes longer than a judge's reply.

It begins a moment later, so that it doesn't take the interpreter from whoever reads the replies. What was written is
safe from a kill before that. A fork and the next opening wait for closings under way, and so does the interpreter
before it exits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["close_later", "wait_for_closings"]

_LATER_S = 0.2
_under_way: dict[threading.Thread, threading.Event] = {}


def close_later(close: Callable[[], None]) -> None:
    """Call it in a thread of its own, in 0.2 s or as soon as somebody waits for it."""
    hurry = threading.Event()

    def work() -> None:
        try:
            hurry.wait(_LATER_S)
            close()
        finally:
            _under_way.pop(thread, None)

    thread = threading.Thread(target=work, name="surefoot-closing")
    _under_way[thread] = hurry
    thread.start()


def wait_for_closings() -> None:
    """Return when all are done; they begin at once."""
    for thread, hurry in list(_under_way.items()):
        hurry.set()
        thread.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=wait_for_closings)
