"""Dynamic batching: while one batch runs, the rows that arrive wait, and then are the next batch.

No timer is needed: an idle server answers at once, and a busy one's batches grow with its load up to a token budget.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Batcher", "Failure", "Full", "run_isolated"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_SLOWEST_RETRY = 60
"""Longest time in seconds that a refused client is told to wait."""


class Full(Exception):
    """The queue has no room.

    Args:
        seconds: after which it is likely to have some.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full for about {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """What the work raised on an item that it was given alone."""

    error: Exception


def run_isolated(work: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> list[Result | Failure]:
    """Results of the items; one that makes the work raise fails alone.

    A batch that raises is halved and each half tried again, so b bad items among n cost at most 2b log₂(n) + 1 further
    calls.
    """
    try:
        results = list(work(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} rows were given {len(results)} results")
        return [*results]
    except Exception as error:
        if len(items) == 1:
            return [Failure(error)]
    half = len(items) // 2
    return [*run_isolated(work, items[:half]), *run_isolated(work, items[half:])]


@dataclass(slots=True, eq=False)
class _Request(Generic[Item, Result]):
    """Items that were submitted together, and the future of all their results."""

    future: asyncio.Future[list[Result | Failure]]
    results: list[Result | Failure | None]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.results)

    def give(self, place: int, result: Result | Failure) -> None:
        self.results[place] = result
        self.left -= 1
        if self.left == 0 and not self.future.done():
            self.future.set_result(self.results)  # type: ignore[arg-type]


class Batcher(Generic[Item, Result]):
    """A queue with limits, and one thread that works on batches of it, first come, first served.

    Use it from one event loop: `start`, any number of `submit`, `drain`.

    Args:
        work: items to results, in their order; called in the thread.
        size: an item's tokens, about.
        batch_tokens: of a batch, at most; an item that is longer is a batch of its own.
        max_waiting: items in the queue.
        max_waiting_tokens: of all items in the queue.
        on_batch: called with (items, seconds) after each batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        size: Callable[[Item], int],
        *,
        batch_tokens: int,
        max_waiting: int,
        max_waiting_tokens: int,
        on_batch: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self._work, self._size, self._on_batch = work, size, on_batch
        self._batch_tokens, self._max_waiting, self._max_tokens = batch_tokens, max_waiting, max_waiting_tokens
        self._queue: deque[tuple[Item, int, _Request[Item, Result], int]] = deque()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._rate = 0.0  # tokens per second, smoothed over some batches
        self.waiting_tokens = 0

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def submit(self, items: Sequence[Item]) -> list[Result | Failure]:
        """Wait for all items' results. If the caller is cancelled, those that still wait are dropped.

        Raises:
            Full: there is no room for all of them; none was taken.
        """
        sizes = [self._size(item) for item in items]
        over = len(self._queue) + len(items) > self._max_waiting or self.waiting_tokens + sum(sizes) > self._max_tokens
        if over and self._queue:  # where nothing waits, a request of any size is taken: it would never fit otherwise
            raise Full(self._retry_after())
        request: _Request[Item, Result] = _Request(asyncio.get_running_loop().create_future(), [None] * len(items))
        self._queue.extend((item, size, request, i) for i, (item, size) in enumerate(zip(items, sizes, strict=True)))
        self.waiting_tokens += sum(sizes)
        self._arrived.set()
        return await request.future

    async def drain(self) -> None:
        """Wait until nothing waits or runs, then end the thread."""
        while self._queue:
            await asyncio.sleep(0.01)
        await self._idle.wait()
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not self._queue:
                self._arrived.clear()
            if not batch:
                continue
            self._idle.clear()
            start = time.perf_counter()
            items = [item for item, *_ in batch]
            results = await loop.run_in_executor(self._thread, run_isolated, self._work, items)
            for (_, _, request, place), result in zip(batch, results, strict=True):
                request.give(place, result)
            self._measure(sum(size for _, size, *_ in batch), len(batch), time.perf_counter() - start)
            self._idle.set()

    def _take(self) -> list[tuple[Item, int, _Request[Item, Result], int]]:
        """The next items whose callers still wait, up to the token budget."""
        batch: list[tuple[Item, int, _Request[Item, Result], int]] = []
        tokens = 0
        while self._queue:
            _, size, request, _ = self._queue[0]
            gone = request.future.done()
            if batch and not gone and tokens + size > self._batch_tokens:
                break
            entry = self._queue.popleft()
            self.waiting_tokens -= size
            if not gone:
                batch.append(entry)
                tokens += size
        return batch

    def _measure(self, tokens: int, items: int, seconds: float) -> None:
        rate = tokens / max(seconds, 1e-6)
        self._rate = rate if self._rate == 0 else 0.8 * self._rate + 0.2 * rate
        self._on_batch(items, seconds)

    def _retry_after(self) -> int:
        """Whole seconds, at least 1, in which what waits now will have been worked off at the present rate."""
        seconds = self.waiting_tokens / self._rate if self._rate else 1.0
        return max(1, min(_SLOWEST_RETRY, math.ceil(seconds)))
