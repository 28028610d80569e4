"""From a slot to the next request: replies are booked first, stops and interruptions leave nothing behind."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot.rewards.kinds.judge.client import ask
from surefoot.rewards.kinds.judge.messages import Reply
from surefoot.rewards.kinds.judge.reply_cache import Booking, ReplyCache
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated

Make = Callable[..., JudgeSource]
INFINITE = (float("inf"), float("inf"))


def count(path: Path, table: str) -> int:
    with sqlite3.connect(path) as db:
        number: int = db.execute(f"select count(*) from {table}").fetchone()[0]
    db.close()
    return number


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_reply_is_on_disk_before_its_slot_is_used_again(concurrency: int, judge: Make, tmp_path: Path) -> None:
    """So a killed process loses no more replies than there are slots."""
    kept: list[tuple[int, int]] = []
    path = tmp_path / "replies.sqlite"

    def act(request: Request) -> Act:
        kept.append((len(server.requests), count(path, "replies")))
        return rated(number_in(request), delay=0.01)

    with JudgeServer(act) as server:
        judge(server, concurrency=concurrency, samples=2).score(["p"] * 9, [f"{i + 1}" for i in range(9)])
    assert len(kept) == 18
    assert all(stored >= requests - concurrency for requests, stored in kept)


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_what_is_made_ready_ahead_is_not_sent_ahead(concurrency: int, judge: Make) -> None:
    with JudgeServer(lambda r: rated(number_in(r), delay=0.01)) as server:
        scores = judge(server, concurrency=concurrency, samples=2).score(
            ["p"] * 30, [f"{i % 9 + 1}" for i in range(30)]
        )
        assert server.most_at_once <= concurrency
    assert scores[:9, 0].tolist() == list(range(1, 10))


def test_a_call_is_booked_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite", "mine")
    assert cache.claim("k-0", 60, 1, 0.0, INFINITE) == "ours"
    with pytest.raises(sqlite3.IntegrityError):
        cache.settle("k-0", Reply("7"), Booking("reply", None, 3, 4, 0.5, 0.1))  # type: ignore[arg-type]
    assert [cache.rows(f"select count(*) from {name}")[0][0] for name in ("replies", "claims", "spent")] == [0, 1, 0]
    cache.settle("k-0", Reply("7"), Booking("reply", 1, 3, 4, 0.5, 0.1))
    assert [cache.rows(f"select count(*) from {name}")[0][0] for name in ("replies", "claims", "spent")] == [1, 0, 1]
    assert cache.rows("select tokens, money from spent") == [(7, 0.5)]
    cache.close()


def test_a_claim_is_not_given_twice_in_one_process(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite", "mine")
    assert [cache.claim("k-0", 60, 1, 0.0, INFINITE) for _ in range(2)] == ["ours", "theirs"]
    cache.close()


def test_equal_calls_under_way_at_once_are_made_once(judge: Make) -> None:
    with JudgeServer(lambda r: rated(number_in(r), delay=0.1)) as server:
        scores = judge(server, samples=2).score(["p"] * 5, ["7", "7", "8", "7", "8"])
        assert set(server.seen.values()) == {1}
        assert len(server.requests) == 4
    assert scores[:, 0].tolist() == [7, 7, 8, 7, 8]


def test_an_interrupted_batch_leaves_no_claims(judge: Make, tmp_path: Path, python_interrupts: None) -> None:
    """Ctrl-C, with calls in flight and others waiting: their claims are given up, and the file is closed."""
    with JudgeServer(lambda r: rated(7, delay=0 if r.texts["ANSWER"] == "0" else 30)) as server:
        source = judge(server, samples=1, concurrency=4)

        def interrupt() -> None:
            while len(server.requests) < 5:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            source.score(["p"] * 20, [f"{i}" for i in range(20)])
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["replies.sqlite"]
    assert [count(tmp_path / "replies.sqlite", table) for table in ("claims", "replies")] == [0, 1]


def test_an_error_of_the_reader_stops_the_batch_and_leaves_nothing(judge: Make, tmp_path: Path) -> None:
    """Calls in flight are finished and booked, since they are paid for; no further one is sent."""
    with JudgeServer(lambda r: rated(7, delay=0.05)) as server:
        source = judge(server, samples=1, concurrency=2)
        completions = [source.questions.calls("p", f"{i}", None) for i in range(50)]

        def read(calls: Any, outcomes: Any) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ask("m", source.config, completions, read)
        assert len(server.requests) <= 4
    path = tmp_path / "replies.sqlite"
    assert [count(path, table) for table in ("claims", "replies")] == [0, len(server.requests)]


def test_nothing_but_the_file_is_left(judge: Make, tmp_path: Path) -> None:
    """It is closed when `score` returns, so that a fork shares no open file."""
    with JudgeServer(lambda r: rated(7)) as server:
        judge(server).score(["p"], ["7"])
    assert [path.name for path in tmp_path.iterdir()] == ["replies.sqlite"]


def test_a_redirect_is_not_followed(judge: Make) -> None:
    """The prompts and the key go to the endpoint that the settings name, and nowhere else."""
    with JudgeServer(lambda r: rated(7)) as elsewhere:
        moved = Act(status=307, headers={"location": f"{elsewhere.endpoint}/chat/completions"})
        with JudgeServer(lambda r: moved) as server, pytest.warns(UserWarning, match="HTTP 307"):
            assert bool(judge(server).score(["p"], ["7"]).isnan().all())
        assert elsewhere.requests == []
