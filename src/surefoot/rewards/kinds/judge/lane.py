"""What can wait gives way: requests are made ready, and replies read, piece by piece between other calls' replies.

The event loop runs all that is ready before it looks at the network again. Without a lane, replies that come while
many requests are being made ready are seen together, their calls' next requests leave together and are answered
together, and so on: the calls bunch, and every bunch waits for all of itself.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Lane"]

_TURNS = 5
"""Turns of the loop that a reply takes from its arrival until the next request leaves; between two pieces there are so
many."""


class Lane:
    """Pieces of work, one at a time."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = 0

    async def turn(self) -> None:
        """Wait until a piece may be done; what runs from here to the next wait is the piece."""
        loop = asyncio.get_running_loop()
        place = loop.create_future()
        self._waiting.append(place)
        if not self._left:
            self._left = 1
            loop.call_soon(self._tick)
        await place

    def _tick(self) -> None:
        self._left -= 1
        if not self._left and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
            self._left = _TURNS
        if self._left:
            asyncio.get_running_loop().call_soon(self._tick)
