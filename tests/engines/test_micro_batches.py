"""Rows that arrive one at a time are scored together, in their order, and a bad one fails alone."""

import asyncio
import threading
from typing import Any

import pytest

from surefoot.engines.micro_batches import MicroBatches


def test_rows_that_wait_are_the_next_batch() -> None:
    seen, started, go = [], threading.Event(), threading.Event()

    def function(rows: Any) -> Any:
        seen.append(list(rows))
        started.set()
        assert go.wait(30)
        return [row * 10 for row in rows]

    async def ask() -> Any:
        score = MicroBatches(function, most=3)
        first = asyncio.ensure_future(score(0))
        while not started.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(score(i)) for i in range(1, 6)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(ask()) == [0, 10, 20, 30, 40, 50]
    assert seen == [[0], [1, 2, 3], [4, 5]]


def test_a_bad_row_fails_alone() -> None:
    def function(rows: Any) -> Any:
        if "bad" in rows:
            raise ValueError("cannot read it")
        return [row.upper() for row in rows]

    async def ask() -> Any:
        score = MicroBatches(function, most=8)
        return await asyncio.gather(*(score(row) for row in ("a", "bad", "b")), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == ("A", "B")
    assert isinstance(second, ValueError)


def test_who_has_gone_is_not_answered() -> None:
    async def ask() -> Any:
        score: MicroBatches[int, int] = MicroBatches(lambda rows: list(rows), most=8)
        gone = asyncio.ensure_future(score(1))
        await asyncio.sleep(0)
        gone.cancel()
        answer = await score(2)
        with pytest.raises(asyncio.CancelledError):
            await gone
        return answer

    assert asyncio.run(ask()) == 2
