"""Paid for once: over restarts after SIGKILL, over processes, over duplicates in a batch."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.rewards.kinds.judge import owners
from surefoot.rewards.kinds.judge.messages import Reply
from surefoot.rewards.kinds.judge.owners import is_alive
from surefoot.rewards.kinds.judge.reply_cache import Booking, ReplyCache
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import JudgeServer, number_in, rated

INFINITE = (float("inf"), float("inf"))
SCORE = """
import sys
from surefoot.rewards.kinds.judge.client import ask
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.prompts import Questions
from surefoot.rewards.kinds.judge.rubrics import load_rubric
endpoint, cache, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = JudgeConfig(endpoint=endpoint, cache=cache, samples=2, structured="none", concurrency=4, deadline_s=20)
questions = Questions("m", config, load_rubric("helpfulness"), 1, paired=False)
calls = (questions.calls("p", str(i), None) for i in range(1, rows + 1))
print(ask("m", config, calls, lambda calls, outcomes: outcomes[1].content).read)
assert "torch" not in sys.modules
"""
"""What `JudgeSource.score` does to have its calls answered, without importing torch."""


def contents(rows: int) -> list[str]:
    return [f'{{"rating": {i}}}' for i in range(1, rows + 1)]


def scoring(server: JudgeServer, cache: Path, rows: int) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", SCORE, server.endpoint, str(cache), str(rows)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_nothing_is_paid_twice_after_sigkill(tmp_path: Path) -> None:
    """Only calls whose replies hadn't reached the disk are made again: no more than were in flight."""
    cache = tmp_path / "replies.sqlite"
    with JudgeServer(lambda r: rated(number_in(r), delay=0.1)) as server:
        first = scoring(server, cache, 9)
        while len(server.requests) < 10:
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        first.stdout.close()  # type: ignore[union-attr]
        with sqlite3.connect(cache) as db:
            kept = db.execute("select count(*) from replies").fetchone()[0]
        db.close()
        before = len(server.requests)
        assert 4 <= kept <= before < 18
        second = scoring(server, cache, 9)
        out, _ = second.communicate(timeout=60)
        assert out.strip() == str(contents(9))
        assert len(server.requests) - before == 18 - kept  # each of the others, once
        again = [key for key, count in server.seen.items() if count > 1]
        assert len(again) == before - kept <= 4
        assert max(server.seen.values()) == 2
        with sqlite3.connect(cache) as db:
            assert db.execute("select count(*) from calls").fetchone()[0] == 18
            assert db.execute("select count(*) from claims").fetchone()[0] == 0
        db.close()


@pytest.mark.slow
def test_two_processes_pay_once_between_them(tmp_path: Path) -> None:
    with JudgeServer(lambda r: rated(number_in(r), delay=0.2)) as server:
        both = [scoring(server, tmp_path / "replies.sqlite", 8) for _ in range(2)]
        outs = [one.communicate(timeout=60)[0] for one in both]
        assert outs[0] == outs[1] == f"{contents(8)}\n"
        assert len(server.requests) == 16


def test_equal_completions_of_a_batch_are_asked_for_once(judge: Callable[..., JudgeSource]) -> None:
    with JudgeServer(lambda r: rated(number_in(r))) as server:
        scores = judge(server).score(["p", "q", "p", "p"], ["7", "7", "7", "8"])
        assert scores[:, 0].tolist() == [7, 7, 7, 8]
        assert len(server.requests) == 9


def test_every_part_of_the_request_is_in_the_key(judge: Callable[..., JudgeSource]) -> None:
    with JudgeServer(lambda r: rated(7)) as server:

        def paid(**settings: object) -> int:
            before = len(server.requests)
            judge(server, samples=2, **settings).score(["p"], ["c"])
            return len(server.requests) - before

        assert paid() == 2
        assert paid() == 0
        assert paid(retries=1, concurrency=3, deadline_s=9.0, min_valid=1, variance="raw") == 0
        for changed in (
            {"temperature": 0.5},
            {"max_tokens": 9},
            {"rubric": "overall"},
            {"parameters": {"top_p": 0.9}},
            {"reason": True},
            {"sample_seed": 3},
            {"structured": "json_object"},
        ):
            assert paid(**changed) == 2, changed
        assert judge(server, samples=3).score(["p"], ["c"])[0, 3] == 3  # a third sample is one more call
    assert len(server.requests) == 2 + 14 + 1


def test_a_reply_is_booked_in_one_transaction(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "a" / "replies.sqlite", "mine")
    other = ReplyCache(tmp_path / "a" / "replies.sqlite", "mine")
    assert cache.claim("k-0", 60, 10, 0.1, INFINITE) == "ours"
    assert other.claim("k-0", 60, 10, 0.1, INFINITE) == "theirs"
    assert other.claim("k-1", 60, 10, 0.0, (15.0, 1.0)) == "spent"  # what is in flight counts
    cache.settle("k-0", Reply("7"), Booking("reply", 1, 3, 4, 0.5, 0.1))
    assert other.claim("k-0", 60, 10, 0.1, INFINITE) == "answered"
    assert other.claim("k-0", 60, 10, 0.1, (1e9, 1e9)) == "answered"
    assert other.claim("k-1", 60, 8, 0.0, (15.0, 1.0)) == "ours"
    assert other.replies(["k-0", "k-9"]) == {"k-0": Reply("7")}
    other.release("k-1")
    assert cache.claim("k-1", 0.0, 1, 0.0, INFINITE) == "ours"
    time.sleep(0.01)
    assert other.claim("k-1", 60, 1, 0.0, INFINITE) == "ours"  # past its time
    cache.close()
    other.close()


CLAIM = """
import sys, time
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache
cache = ReplyCache(sys.argv[1], "mine")
print(cache.claim("k-0", 600, 10, 0.0, (float("inf"), float("inf"))), flush=True)
time.sleep(60)
"""


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    """No number of a process is looked at: in a container that is started again it is the same one."""
    path = tmp_path / "replies.sqlite"
    words = [sys.executable, "-c", CLAIM, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ours\n"
        cache = ReplyCache(path, "mine")
        assert cache.claim("k-0", 60, 1, 0.0, INFINITE) == "theirs"
        assert cache.claim("k-1", 60, 10, 0.0, (15.0, 1.0)) == "spent"  # what it holds back counts while it lives
        process.kill()
    assert cache.claim("k-1", 60, 10, 0.0, (15.0, 1.0)) == "ours"
    assert cache.claim("k-0", 60, 1, 0.0, INFINITE) == "ours"
    assert [one.name for one in tmp_path.glob("*.owner")] == [f"replies.sqlite.{cache.owner}.owner"]
    cache.close()
    assert not list(tmp_path.glob("*.owner"))


def test_files_of_killed_processes_are_cleared_away(tmp_path: Path) -> None:
    """Also those that held no claim; never a living one's."""
    path = tmp_path / "replies.sqlite"
    living = ReplyCache(path, "mine")
    (tmp_path / "replies.sqlite.0123456789abcdef0123456789abcdef.owner").touch()
    other = ReplyCache(path, "mine")
    names = {f"replies.sqlite.{cache.owner}.owner" for cache in (living, other)}
    assert {one.name for one in tmp_path.glob("*.owner")} == names
    assert is_alive(path, living.owner)
    living.close()
    assert not is_alive(path, living.owner)
    other.close()


def test_where_there_are_no_locks_only_the_time_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "fcntl", None)
    one, other = (ReplyCache(tmp_path / "replies.sqlite", "mine") for _ in range(2))
    assert one.claim("k-0", 0.2, 1, 0.0, INFINITE) == "ours"
    assert other.claim("k-0", 60, 1, 0.0, INFINITE) == "theirs"
    time.sleep(0.25)
    assert other.claim("k-0", 60, 1, 0.0, INFINITE) == "ours"
    one.close()
    other.close()


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_text("not a database, not at all, but long enough to be taken for one" * 20)
    with pytest.raises(RunError, match="can't be used"):
        ReplyCache(path, "mine")
