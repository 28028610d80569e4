"""Whether two folders hold the same results: the same names, and contents equal to 1e-6, but for times."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

_VOLATILE = re.compile(
    "created|commit|seconds|.*_seconds|train_.*|.*share_of_time|.*step_time|peak_memory_mb|warnings|total_flos|num_.*_seen"
)
"""Times, the commit of the checkout, and what Trainer counts from the start of a process and not of a run."""
_BINARY = (".bin", ".pt", ".pth")
"""States of optimisers and random generators: what they lead to is compared instead."""
_CACHE = {
    "replies": "key, reply",
    "claims": "key",
    "calls": "key, outcome, tries, prompt_tokens, completion_tokens, money",
    "spent": "account, tokens, money",
    "facts": "name, value",
}
"""Tables of a judge's cache, without times."""


def difference(expected: Path, found: Path) -> str | None:
    """What differs first, in words, or None."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (expected, found)]
    if names[0] != names[1]:
        return f"missing: {sorted(names[0] - names[1])}, left over: {sorted(names[1] - names[0])}"
    for name in sorted(names[0]):
        if (expected / name).is_file() and not _same(expected / name, found / name):
            return f"{name} differs"
    return None


def _same(one: Path, other: Path) -> bool:
    if one.suffix in _BINARY or one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".safetensors":
        a, b = load_file(one), load_file(other)
        return a.keys() == b.keys() and all(
            torch.allclose(a[name], b[name], rtol=1e-6, atol=1e-6, equal_nan=True) for name in a
        )
    if one.suffix == ".parquet":
        return _close(pq.read_table(one).to_pylist(), pq.read_table(other).to_pylist())
    if one.suffix == ".json":
        return _close(json.loads(one.read_text()), json.loads(other.read_text()))
    if one.suffix == ".sqlite":
        return _cached(one) == _cached(other)
    return False


def _cached(path: Path) -> list[list[Any]]:
    """Sorted rows of a judge's cache that is closed."""
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as db:
        tables = [sorted(db.execute(f"select {columns} from {table}")) for table, columns in _CACHE.items()]
    db.close()
    return tables


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _VOLATILE.fullmatch(name) or _close(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        one, other = ([row for row in rows if not _of_a_process(row)] for rows in (one, other))
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _of_a_process(row: Any) -> bool:
    """Trainer's last entry of a log: the time that its process took. One that resumes at the end has none."""
    return isinstance(row, dict) and "train_runtime" in row
