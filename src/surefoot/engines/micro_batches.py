"""Batch the calls of an engine that asks for one row at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["MicroBatches"]

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class MicroBatches(Generic[Row, Answer]):
    """Score rows in one thread: while a batch is scored, rows wait, and all that wait are the next batch.

    There is no timer, so a lone row is scored at once.

    Args:
        function: from rows to as many answers.
        most: rows of a batch.
    """

    def __init__(self, function: Callable[[Sequence[Row]], Sequence[Answer]], most: int) -> None:
        self._function, self._most = function, most
        self._waiting: list[tuple[Row, asyncio.Future[Answer]]] = []
        self._thread = ThreadPoolExecutor(1)
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, row: Row) -> Answer:
        """The row's answer; raises what the function raised on this row alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((row, future))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Row, Any]]) -> None:
        """Answer a batch; if it fails, its rows are scored one by one, so that only the bad ones fail."""
        try:
            call = asyncio.get_running_loop().run_in_executor(self._thread, self._function, [row for row, _ in batch])
            answers = await call
        except Exception as error:
            if len(batch) == 1:
                self._tell(batch[0][1], error=error)
            else:
                for held in batch:
                    await self._answer([held])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            self._tell(future, answer)

    @staticmethod
    def _tell(future: Any, answer: Any = None, error: Exception | None = None) -> None:
        if future.done():  # whoever asked has gone
            return
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)
