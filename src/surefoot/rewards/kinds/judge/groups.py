"""Booking in groups: what came within one turn of the event loop is written in one transaction.

Many replies come at once, and a transaction of each costs as much CPU as reading it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from surefoot.rewards.kinds.judge.reply_cache import Entry, ReplyCache

__all__ = ["Groups"]


class Groups:
    """The bookings of one batch."""

    def __init__(self, cache: ReplyCache) -> None:
        self._cache = cache
        self._entries: list[Entry] = []
        self._then: list[Callable[[], None]] = []
        self._written: asyncio.Future[None] | None = None

    async def book(self, entry: Entry, then: Callable[[], None]) -> None:
        """Return when it is on disk; all of a group are, or none.

        Args:
            then: called as soon as it is written, before anybody goes on.
        """
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            loop.call_soon(self._write)
        self._entries.append(entry)
        self._then.append(then)
        await asyncio.shield(self._written)

    def _write(self) -> None:
        entries, then, written = self._entries, self._then, self._written
        assert written is not None
        self._entries, self._then, self._written = [], [], None
        try:
            self._cache.settle(entries)
        except Exception as error:
            written.set_exception(error)
            return
        for each in then:
            each()
        written.set_result(None)
