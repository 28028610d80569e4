"""Anchors made from reference completions that clients send: the first for a prompt stays, in SQLite."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, RunError
from surefoot.rewards.anchors import PROBES, AnchorStore, prompt_digest
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors, Text

__all__ = ["AnchorMemory"]

_TABLES = """\
CREATE TABLE IF NOT EXISTS anchors (digest TEXT PRIMARY KEY, row BLOB NOT NULL, completions INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS probes (prompt TEXT NOT NULL, completion TEXT NOT NULL, row BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS about (source TEXT NOT NULL);
"""


class AnchorMemory:
    """Mean scored rows of prompts by the prompts' content, which are never replaced and never evicted.

    An anchor that changed or vanished in the middle of a run would change what is optimised.

    Args:
        source: whose rows they are. A file that another source filled is refused, as `AnchorStore.check` tells.
        path: of the SQLite file, which several processes may share; None keeps it in memory.
        limit: number of prompts at most.

    Raises:
        RunError: the file can't be used. DataError: it is another source's.
    """

    def __init__(self, source: RewardSource, path: str | None = None, limit: int = 100_000) -> None:
        self._columns, self._limit, self._lock = source.num_columns, limit, threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=30, check_same_thread=False, isolation_level=None)
            self._db.executescript(_TABLES)
            self._db.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (source.name,))
            self._check(source)
        except sqlite3.Error as error:
            raise RunError(f"can't use {path} for anchors: {error}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM anchors")[0])

    @property
    def is_full(self) -> bool:
        return len(self) >= self._limit

    def lacks(self, prompt: Text) -> bool:
        """Whether the prompt has no anchor yet."""
        return bool(self._one("SELECT 1 FROM anchors WHERE digest = ?", (prompt_digest(prompt),)) is None)

    def add(self, prompt: Text, completions: Sequence[Text], scores: Float[Tensor, "completions columns"]) -> None:
        """Keep the mean of a prompt's scored rows, unless it has an anchor already.

        Raises:
            DataError: none of them was scored.
        """
        known = scores[~scores.isnan().all(dim=1)]
        if not len(known):
            raise DataError("none of its reference completions could be scored")
        row = known.double().nanmean(dim=0).float()
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO anchors VALUES (?, ?, ?)", (prompt_digest(prompt), _packed(row), len(known))
            )
            probes = self._db.execute("SELECT count(*) FROM probes").fetchone()[0]
            if probes < PROBES and not bool(scores[0].isnan().any()):
                texts = json.dumps(prompt), json.dumps(completions[0])
                self._db.execute("INSERT INTO probes VALUES (?, ?, ?)", (*texts, _packed(scores[0])))

    def where_known(self, prompts: Sequence[Text]) -> Anchors:
        """Anchors of the prompts, (batch, columns), NaN for a prompt that has none."""
        digests = [prompt_digest(prompt) for prompt in prompts]
        held: dict[str, tuple[bytes, int]] = {}
        wanted = sorted(set(digests))
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            with self._lock:
                query = f"SELECT digest, row, completions FROM anchors WHERE digest IN ({marks})"
                held |= {digest: (row, count) for digest, row, count in self._db.execute(query, part)}
        rows = torch.full((len(digests), self._columns), math.nan)
        count = torch.ones(len(digests))
        for place, digest in enumerate(digests):
            if digest in held:
                rows[place], count[place] = _unpacked(held[digest][0]), float(held[digest][1])
        return Anchors(rows, "reference", count)

    def close(self) -> None:
        self._db.close()

    def _check(self, source: RewardSource) -> None:
        store = AnchorStore(str(self._one("SELECT source FROM about")[0]), 1)
        for prompt, completion, row in self._db.execute("SELECT prompt, completion, row FROM probes").fetchall():
            store.add_probe(json.loads(prompt), json.loads(completion), _unpacked(row))
        store.check(source)

    def _one(self, query: str, values: Sequence[str] = ()) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()


def _packed(row: Float[Tensor, "columns"]) -> bytes:
    return row.float().numpy().astype("<f4").tobytes()


def _unpacked(row: bytes) -> Float[Tensor, "columns"]:
    return torch.from_numpy(np.frombuffer(row, "<f4").astype(np.float32))
