"""Cache of replies in a SQLite file, so that no call is paid for twice, by any process.

One SQLite file in WAL mode, shared by any number of processes of one machine. A reply is written in the transaction
that books what it cost and gives up its claim, before anybody sees it. A claim says that a process is paying for a
call at this moment; the others wait for its reply. A claim whose process is gone, or that is past its time, is free.

Keys and texts: a reply is filed under the hash of its request (`Call.key`). Prompts, completions and keys of
endpoints are never written; what the judge said is.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from surefoot.errors import RunError
from surefoot.rewards.kinds.judge.messages import Reply
from surefoot.rewards.kinds.judge.owners import Owner, is_alive

__all__ = ["Booking", "ReplyCache", "default_path"]

_TABLES = """
begin;
create table if not exists replies (key text primary key, reply text not null) without rowid;
create table if not exists claims (
    key text primary key, owner text not null, until real not null, account text not null, tokens int not null,
    money real not null
) without rowid;
create table if not exists calls (
    time real not null, account text not null, key text not null, outcome text not null, tries int not null,
    prompt_tokens int not null, completion_tokens int not null, money real not null, latency real not null
);
create table if not exists spent (
    account text primary key, tokens int not null default 0, money real not null default 0
) without rowid;
create table if not exists facts (name text primary key, value text not null) without rowid;
pragma user_version = 1;
commit;
"""
_VERSION = 1
_WAIT_S = 30.0
"""How long one process waits for another's transaction; a transaction takes less than a millisecond."""

Claim = Literal["ours", "theirs", "answered", "spent"]


def default_path() -> Path:
    """`surefoot/judge.sqlite` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot" / "judge.sqlite"


class Booking(NamedTuple):
    """Cost of one finished call.

    Args:
        outcome: "reply", or why it is missing.
        tries: requests that were sent.
        money: by the prices of the settings.
        latency: seconds from the first try to the end of the last.
    """

    outcome: str
    tries: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    latency: float


class ReplyCache:
    """An open cache file.

    Args:
        path: created if need be, with its directory; only its owner may read it.
        account: whose spending is counted (`CallConfig.account`).

    Raises:
        RunError: the file can't be opened, or isn't SQLite.
    """

    def __init__(self, path: str | Path, account: str) -> None:
        self.path, self.account = Path(path), account
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _create_private(self.path)
            self._db = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma wal_autocheckpoint=16000")
            if self._one("pragma user_version")[0] != _VERSION:
                if not self._one("pragma page_count")[0]:
                    self._db.execute("pragma synchronous=off")  # while there is nothing to lose
                self._db.execute("pragma journal_mode=wal")
                self._db.executescript(_TABLES)
            self._db.execute("pragma synchronous=normal")  # a killed process loses nothing; a power cut, the last
            self._owner = Owner(self.path)
        except (sqlite3.DatabaseError, OSError) as error:
            raise RunError(f"the cache of replies {self.path} can't be used ({error}); move it away") from None

    def close(self) -> None:
        self._db.close()
        self._owner.close()

    @property
    def owner(self) -> str:
        """Name under which its claims are kept."""
        return self._owner.name

    def replies(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The stored replies among these keys."""
        wanted, replies = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = self._db.execute(f"select key, reply from replies where key in ({marks})", some)
            replies.update({key: Reply.from_json(reply) for key, reply in rows})
        return replies

    def claim(self, key: str, seconds: float, tokens: int, money: float, budget: tuple[float, float]) -> Claim:
        """Claim a call, so that nobody else makes it meanwhile.

        Args:
            seconds: how long the claim holds.
            tokens, money: most that the call may cost; held back from the budget until it is booked.
            budget: tokens and money that the account may spend; infinite where there is no budget.

        Returns:
            "ours"; "theirs", if a living process is at it, perhaps this one; "answered", if the reply has come;
            "spent", if the budget doesn't hold it.
        """
        now = time.time()
        row = (key, self.owner, now + seconds, self.account, tokens, money)
        if budget == _UNLIMITED and self._db.execute(_CLAIM_FREE, (*row, key)).rowcount:
            return "ours"
        with self._transaction():
            if self._one("select 1 from replies where key = ?", key) is not None:
                return "answered"
            held = self._one("select owner, until from claims where key = ?", key)
            if held is not None and held[1] > now and (held[0] == self.owner or is_alive(self.path, held[0])):
                return "theirs"
            if budget != _UNLIMITED and not self._holds(tokens, money, budget, now):
                return "spent"
            self._db.execute("insert or replace into claims values (?, ?, ?, ?, ?, ?)", row)
        return "ours"

    def settle(self, key: str, reply: Reply | None, booking: Booking) -> None:
        """Give up the claim of a call that is finished, and keep its reply and what it cost, in one transaction."""
        with self._transaction():
            self._db.execute("delete from claims where key = ?", (key,))
            if reply is not None:
                self._db.execute("insert or ignore into replies values (?, ?)", (key, reply.to_json()))
            row = (time.time(), self.account, key, *booking)
            self._db.execute("insert into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            tokens = booking.prompt_tokens + booking.completion_tokens
            self._db.execute(_SPEND, (self.account, tokens, booking.money))

    def release(self, key: str) -> None:
        """Give up the claim of a call that was never sent, or whose answer nobody waits for."""
        self._db.execute("delete from claims where key = ? and owner = ?", (key, self.owner))

    def fact(self, name: str) -> str | None:
        """A value kept by `note`, such as the form of JSON that an endpoint takes; None if there is none."""
        row = self._one("select value from facts where name = ?", name)
        return None if row is None else str(row[0])

    def note(self, name: str, value: str) -> None:
        self._db.execute("insert or replace into facts values (?, ?)", (name, value))

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Rows of a select statement."""
        return self._db.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: Any) -> Any:
        return self._db.execute(statement, values).fetchone()

    def _holds(self, tokens: int, money: float, budget: tuple[float, float], now: float) -> bool:
        spent = self._one("select tokens, money from spent where account = ?", self.account) or (0, 0.0)
        rows = self.rows("select owner, tokens, money from claims where account = ? and until > ?", self.account, now)
        owners = {row[0] for row in rows}
        owners = {name for name in owners if name == self.owner or is_alive(self.path, name)}
        alive = [row for row in rows if row[0] in owners]
        tokens += spent[0] + sum(row[1] for row in alive)
        money += spent[1] + sum(row[2] for row in alive)
        return tokens <= budget[0] and money <= budget[1]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


def _create_private(path: Path) -> None:
    """An empty file that only its owner may read; SQLite's own files beside it take the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return


_UNLIMITED = (float("inf"), float("inf"))
_SPEND = """
insert into spent values (?, ?, ?) on conflict (account) do update set
tokens = tokens + excluded.tokens, money = money + excluded.money
"""
_CLAIM_FREE = """
insert or ignore into claims select ?, ?, ?, ?, ?, ? where not exists (select 1 from replies where key = ?)
"""
"""Claims a call that is neither claimed nor answered, in one statement."""


class _Transaction:
    """`begin immediate … commit`, rolled back by an error."""

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin immediate")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("commit" if kind is None else "rollback")
