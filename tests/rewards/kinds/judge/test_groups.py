"""From a reply to the next request: booking in groups, pieces of work one at a time, closing where nobody waits."""

import asyncio
import gc
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surefoot.rewards.kinds.judge.closing import close_later, wait_for_closings
from surefoot.rewards.kinds.judge.groups import Groups
from surefoot.rewards.kinds.judge.lane import Lane

from surefoot.rewards.kinds.judge import client
from surefoot.rewards.kinds.judge.messages import Reply
from surefoot.rewards.kinds.judge.reply_cache import Booking, Entry, ReplyCache
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import JudgeServer, number_in, rated


def entry(key: str, reply: Any = Reply("7")) -> Entry:  # noqa: B008
    return Entry(key, reply, Booking("reply", 1, 3, 4, 0.5, 0.1))


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    found = ReplyCache(tmp_path / "replies.sqlite", "mine")
    yield found
    found.close()


def test_replies_of_one_turn_of_the_loop_are_one_transaction(cache: ReplyCache, tmp_path: Path) -> None:
    """Another process sees none of them before the loop's turn is over, and then all; only then are slots free."""
    freed: list[str] = []
    begun: list[str] = []

    def kept() -> int:
        with sqlite3.connect(tmp_path / "replies.sqlite") as db:
            count: int = db.execute("select count(*) from replies").fetchone()[0]
        db.close()
        return count

    async def run() -> None:
        cache._db.set_trace_callback(lambda said: begun.append(said) if said.startswith("begin") else None)
        groups = Groups(cache)
        books = [asyncio.ensure_future(groups.book(entry(f"k-{i}"), partial_free(i))) for i in range(5)]
        await asyncio.sleep(0)
        assert (kept(), freed) == (0, [])  # what a kill here would lose is still counted as in flight
        await asyncio.gather(*books)
        assert (kept(), freed) == (5, [f"{i}" for i in range(5)])
        await groups.book(entry("k-5"), partial_free(5))

    def partial_free(i: int) -> Callable[[], None]:
        return lambda: freed.append(f"{i}")

    asyncio.run(run())
    assert len(begun) == 2
    assert cache.rows("select tokens, money from spent") == [(42, 3.0)]
    assert cache.rows("select count(*) from calls") == [(6,)]


def test_a_group_is_booked_whole_or_not_at_all(cache: ReplyCache) -> None:
    """An error reaches every one of the group, no slot is freed by it, and the next group is booked."""
    freed: list[int] = []

    async def run() -> None:
        groups = Groups(cache)
        for key in ("k-0", "k-1"):
            assert cache.claim(key, 60, 1, 0.0, (float("inf"), float("inf"))) == "ours"
        bad = Entry("k-1", Reply("7"), Booking("reply", None, 3, 4, 0.5, 0.1))  # type: ignore[arg-type]
        books = [groups.book(one, lambda: freed.append(1)) for one in (entry("k-0"), bad)]
        found = await asyncio.gather(*books, return_exceptions=True)
        assert [type(error) for error in found] == [sqlite3.IntegrityError] * 2
        assert cache.rows("select count(*) from replies") == [(0,)]
        assert cache.rows("select count(*) from claims") == [(2,)]
        assert freed == []
        await groups.book(entry("k-0"), lambda: freed.append(1))
        assert freed == [1]

    asyncio.run(run())


def test_a_call_that_is_cancelled_leaves_its_group_alone(cache: ReplyCache) -> None:
    async def run() -> None:
        groups = Groups(cache)
        one, other = (asyncio.ensure_future(groups.book(entry(key), int)) for key in ("k-0", "k-1"))
        await asyncio.sleep(0)
        one.cancel()
        await other
        assert one.cancelled()

    asyncio.run(run())
    assert cache.rows("select count(*) from replies") == [(2,)]


def test_pieces_take_turns_and_all_get_theirs() -> None:
    done: list[int] = []
    between: list[int] = []

    async def run() -> None:
        lane = Lane()

        async def piece(i: int) -> None:
            await lane.turn()
            done.append(i)

        tasks = [asyncio.ensure_future(piece(i)) for i in range(4)]
        tasks[1].cancel()
        while not all(task.done() for task in tasks):
            before = len(done)
            await asyncio.sleep(0)
            between.append(len(done) - before)
        await piece(4)

    asyncio.run(run())
    assert done == [0, 2, 3, 4]
    assert max(between) == 1


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_what_is_made_ready_ahead_is_not_sent_ahead(concurrency: int, judge: Callable[..., JudgeSource]) -> None:
    with JudgeServer(lambda r: rated(number_in(r), delay=0.01)) as server:
        scores = judge(server, concurrency=concurrency, samples=2).score(
            ["p"] * 30, [f"{i % 9 + 1}" for i in range(30)]
        )
        assert server.most_at_once <= concurrency
    assert scores[:9, 0].tolist() == list(range(1, 10))


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_collection_is_as_it_was(fails: bool, judge: Callable[..., JudgeSource]) -> None:
    inside: list[tuple[int, int]] = []

    def read(calls: Any, outcomes: Any) -> int:
        inside.append((gc.get_freeze_count(), gc.get_threshold()[0]))
        return 1 // (0 if fails else 1)

    usual = gc.get_threshold()
    with JudgeServer(lambda r: rated(7)) as server:
        source = judge(server)
        calls = source.questions.calls("p", "c", None)
        if fails:
            with pytest.raises(ZeroDivisionError):
                client.ask("m", source.config, [calls], read)
        else:
            assert client.ask("m", source.config, [calls], read).read == [1]
    assert inside[0][0] > 0
    assert inside[0][1] > usual[0]
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, usual)


def test_a_fork_and_the_next_opening_wait_for_a_closing(tmp_path: Path) -> None:
    released, closed = threading.Event(), []

    def slow() -> None:
        released.wait(10)
        closed.append(True)

    for wait in (wait_for_closings, lambda: ReplyCache(tmp_path / "a.sqlite", "mine").close(), forked):
        released.clear()
        closed.clear()
        close_later(slow)
        threading.Timer(0.05, released.set).start()
        wait()
        assert closed == [True]


def forked() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
