"""Every item is worked on once and alone answers for itself; batches keep to the budget, the queue to its limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from surefoot.serving.batcher import Batcher, Failure, Full, run_isolated
from surefoot.serving.metrics import Metrics


def odd_raises(calls: list[list[int]]) -> Callable[[list[int]], list[int]]:
    def work(items: list[int]) -> list[int]:
        calls.append(items)
        if any(item % 100 == 99 for item in items):
            raise ValueError("odd")
        return [10 * item for item in items]

    return work


def test_a_broken_item_fails_alone_in_a_few_calls() -> None:
    calls: list[list[int]] = []
    results = run_isolated(odd_raises(calls), list(range(128)))
    assert isinstance(results[99], Failure)
    assert [x for i, x in enumerate(results) if i != 99] == [10 * i for i in range(128) if i != 99]
    assert len(calls) == 1 + 2 * 7
    assert all(isinstance(x, Failure) for x in run_isolated(lambda items: [], [1, 2]))


def run(work: Any, scenario: Callable[[Batcher[int, int]], Any], **limits: int) -> Any:
    async def main() -> Any:
        sizes = {"batch_tokens": 100, "max_waiting": 1000, "max_waiting_tokens": 10_000} | limits
        batcher: Batcher[int, int] = Batcher(work, lambda item: 10, **sizes)  # type: ignore[arg-type]
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            await batcher.drain()

    return asyncio.run(main())


def test_each_caller_gets_its_own_results_and_no_item_is_worked_on_twice() -> None:
    calls: list[list[int]] = []

    async def scenario(batcher: Batcher[int, int]) -> list[Any]:
        return await asyncio.gather(*(batcher.submit([3 * i, 3 * i + 1, 3 * i + 2]) for i in range(50)))

    results = run(odd_raises(calls), scenario, batch_tokens=70)
    flat = [x for part in results for x in part]
    assert [x for i, x in enumerate(flat) if i != 99] == [10 * i for i in range(150) if i != 99]
    assert isinstance(flat[99], Failure)
    assert max(map(len, calls)) == 7
    whole = [call for call in calls if 99 not in call]
    assert len({item for call in whole for item in call}) == 149


def test_a_full_queue_takes_nothing_and_a_caller_that_leaves_frees_its_place() -> None:
    go, calls = threading.Event(), []

    def work(items: list[int]) -> list[int]:
        calls.append(items)
        go.wait(60)
        return items

    async def scenario(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit([1]))
        while not calls:
            await asyncio.sleep(0.001)
        leaving = asyncio.create_task(batcher.submit([2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(Full) as full:
            await batcher.submit([4, 5])
        assert full.value.seconds == 1
        staying = asyncio.create_task(batcher.submit([6]))
        await asyncio.sleep(0)
        assert (batcher.waiting, batcher.waiting_tokens) == (3, 30)
        leaving.cancel()
        go.set()
        assert await first == [1]
        assert await staying == [6]
        assert calls == [[1], [6]]
        assert (batcher.waiting, batcher.waiting_tokens) == (0, 0)

    run(work, scenario, max_waiting=3)


def test_a_request_larger_than_the_token_limit_runs_where_nothing_waits() -> None:
    async def scenario(batcher: Batcher[int, int]) -> list[Any]:
        return await batcher.submit(list(range(20)))

    assert run(lambda items: items, scenario, max_waiting_tokens=50) == list(range(20))


def test_draining_finishes_what_was_accepted() -> None:
    async def scenario(batcher: Batcher[int, int]) -> list[Any]:
        tasks = [asyncio.create_task(batcher.submit([i])) for i in range(30)]
        await asyncio.sleep(0)
        await batcher.drain()
        return [await task for task in tasks]

    assert run(lambda items: items, scenario, batch_tokens=30) == [[i] for i in range(30)]


def test_a_histogram_is_cumulative() -> None:
    metrics = Metrics()
    metrics.histogram("seconds", "Time.", (0.1, 1.0))
    metrics.gauge("waiting", "Rows.", lambda: 2.0)
    for value in (0.05, 0.1, 0.5, 3.0):
        metrics.observe("seconds", value, route="/rm")
    assert metrics.text().splitlines() == [
        "# HELP seconds Time.",
        "# TYPE seconds histogram",
        'seconds_bucket{route="/rm",le="0.1"} 2',
        'seconds_bucket{route="/rm",le="1.0"} 3',
        'seconds_bucket{route="/rm",le="+Inf"} 4',
        'seconds_sum{route="/rm"} 3.65',
        'seconds_count{route="/rm"} 4',
        "# HELP waiting Rows.",
        "# TYPE waiting gauge",
        "waiting 2",
    ]
