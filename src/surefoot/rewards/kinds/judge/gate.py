"""When a request may go out: a slot is free, no Retry-After runs, nothing has stopped the batch, and there is time.

A call comes to the gate with its request built, so that the request leaves as soon as another call's reply is booked.
It is the transport that waits here (`enter`), below `openai`'s client, and finds the call's turn in its context.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from surefoot.rewards.kinds.judge.config import JudgeConfig

__all__ = ["Clock", "Gate", "Turn", "enter"]

_TURN: ContextVar[Turn] = ContextVar("turn")


async def enter() -> None:
    """Wait until the request of this context may go out; at once where there is no gate.

    Raises:
        Closed: it may not.
    """
    turn = _TURN.get(None)
    if turn is not None:
        await turn.begin()


class Closed(Exception):
    """The batch is stopped, or the call's deadline comes before its turn."""


class Gate:
    """One batch's."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.slots = asyncio.Semaphore(config.concurrency)
        self.stopped: Exception | None = None
        self.resume = 0.0
        """When the server may be asked again, after a Retry-After."""

    def stop(self, why: Exception) -> None:
        """No further request goes out; the first reason counts."""
        self.stopped = self.stopped or why

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """An error inside stops the batch, to be raised when the calls in flight are booked."""
        try:
            yield
        except Exception as error:
            self.stop(error)


class Clock:
    """A completion's deadline, which runs from its first request."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end: float | None = None

    def start(self) -> float:
        if self.end is None:
            self.end = asyncio.get_running_loop().time() + self.seconds
        return self.end

    @property
    def late(self) -> bool:
        return self.end is not None and asyncio.get_running_loop().time() >= self.end


class Turn:
    """One call's turns, try by try; each is held from its request until `give`.

    Attributes:
        tries: requests that went out; a second without the form of JSON isn't counted.
        first: when the first did, in the loop's time.
    """

    def __init__(self, gate: Gate, clock: Clock) -> None:
        self.gate, self.clock = gate, clock
        self.tries, self.first = 0, 0.0
        self._held = False

    async def __aenter__(self) -> None:
        _TURN.set(self)
        self._limit = await asyncio.timeout_at(self.clock.end).__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._limit.__aexit__(*error)

    async def begin(self) -> None:
        """Wait for the turn; from here on the try's time is limited, and a completion's clock runs."""
        if self._held:
            return
        await self.gate.slots.acquire()
        self._held = True
        loop, config, end = asyncio.get_running_loop(), self.gate.config, self.clock.start()
        pause = self.gate.resume - loop.time()
        if pause > 0 and self.gate.resume < end:
            await asyncio.sleep(pause + random.uniform(0, min(config.backoff_s, end - self.gate.resume)))
        if self.gate.stopped is not None or max(loop.time(), self.gate.resume) >= end:
            raise Closed
        self._limit.reschedule(min(loop.time() + config.timeout_s, end))
        self.first = self.first or loop.time()
        self.tries += 1

    def give(self) -> None:
        """Let the next call have the slot."""
        if self._held:
            self._held = False
            self.gate.slots.release()
