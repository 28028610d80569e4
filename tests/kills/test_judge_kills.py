"""Scoring with a judge, killed at any write and at random moments: the rerun mends it, and nothing is paid twice."""

import json
import os
import shutil
import sqlite3
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import surefoot.rewards.kinds.judge.client  # noqa: F401  # before the forks, which would each import it
from surefoot.cli.score import run as score
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.kills.killing import survive
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # fork beside threads, which the child lacks
]
PAIRS, SAMPLES, SLOTS = 6, 2, 4
CACHE = "replies.sqlite"


def act(request: Request) -> Act:
    """Some milliseconds a reply, so that kills find calls in flight."""
    return rated(1 + (number_in(request) + request.sample) % 9, delay=0.02)


def audited(method: Callable[..., Any]) -> Callable[..., Any]:
    """SQLite's writes raise no audit event: raise one before and after each, where `survive` looks at the disk."""

    @wraps(method)
    def call(self: ReplyCache, *args: Any) -> Any:
        sys.audit("os.truncate", str(self.path), -1)
        result = method(self, *args)
        sys.audit("os.truncate", str(self.path), -1)
        return result

    return call


def stored(folder: Path) -> list[str]:
    """Keys of the replies in a folder's cache, read from a copy, so that nothing in the folder changes."""
    folder.mkdir()
    for path in Path.cwd().glob(f"{CACHE}*"):
        shutil.copy(path, folder)
    if not (folder / CACHE).exists() or not (folder / CACHE).stat().st_size:
        return []
    with sqlite3.connect(folder / CACHE) as db:
        tables = {name for (name,) in db.execute("select name from sqlite_master")}
        keys = [key for (key,) in db.execute("select key from replies")] if "replies" in tables else []
    db.close()
    return keys


def test_score_with_a_judge(tmp_path: Path, record_property: Any) -> None:
    """Each run has a key of its own, by which the server tells who asked; each says what it found in its cache."""
    rows = tmp_path / "pairs.parquet"
    Dataset.from_dict(
        {
            "prompt": [f"question {i}" for i in range(PAIRS)],
            "chosen": [f"{10 * i + 1} of them" for i in range(PAIRS)],
            "rejected": [f"{10 * i + 4} or so" for i in range(PAIRS)],
        }
    ).to_parquet(rows)
    config = JudgeConfig(
        endpoint="http://127.0.0.1:1/v1", wordings=1, samples=SAMPLES, structured="none", concurrency=SLOTS
    )
    JudgeSource("m", config).save(tmp_path / "source")
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "kills").mkdir()
    with JudgeServer(act) as server:
        words = [
            "--reward_source",
            str(tmp_path / "source"),
            "--dataset_name",
            str(rows),
            "--output",
            "scored.parquet",
        ]
        words += ["--chunk_rows", "2", "--judge_endpoint", server.endpoint, "--judge_cache", CACHE]
        words += ["--judge_key_variable", "KEY_OF_THE_RUN"]

        def run() -> None:
            name = uuid.uuid4().hex
            os.environ["KEY_OF_THE_RUN"] = name
            found = stored(runs / name)
            (runs / f"{name}.json").write_text(json.dumps({"stored": found}))
            for method in ("claim", "settle"):
                setattr(ReplyCache, method, audited(getattr(ReplyCache, method)))
            score(words)
            (runs / f"{name}.json").write_text(json.dumps({"stored": found, "finished": True}))

        kills = survive(run, tmp_path / "kills")
        asked: dict[str, list[str]] = defaultdict(list)
        for request in server.requests:
            asked[request.headers["authorization"].removeprefix("Bearer ")].append(request.headers["idempotency-key"])
    record_property("kills", f"{kills.at_events} at events, {kills.at_random} at random moments")
    everything = set(server.seen)
    assert len(everything) == 2 * PAIRS * SAMPLES
    assert kills.at_events >= 2 * len(everything)
    assert kills.at_random == 10
    finished = 0
    for path in runs.glob("*.json"):
        if not path.read_text():
            continue  # killed at this very write, before it asked anything
        record, keys = json.loads(path.read_text()), asked[path.stem]
        assert len(set(keys)) == len(keys), "one run asked twice for the same"
        assert not set(keys) & set(record["stored"]), "a call was made again though its reply was stored"
        if record.get("finished"):
            assert set(keys) == everything - set(record["stored"])
            finished += 1
    assert finished > kills.at_events
