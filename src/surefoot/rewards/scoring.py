"""Score a dataset of any size through any source: constant memory, resumable, one file at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from surefoot.errors import ConfigError, DataError, RunError
from surefoot.files import fingerprint
from surefoot.records import claim_directory
from surefoot.rewards.encoding import prompt_keys
from surefoot.rewards.source import RewardSource
from surefoot.types import RewardEstimate

__all__ = ["ADDED", "score_dataset"]

ADDED = {
    "completions": ("reward_mean", "reward_variance"),
    "pairs": (
        *("chosen_mean", "chosen_variance", "rejected_mean", "rejected_variance"),
        *("margin_mean", "margin_variance"),
    ),
}
"""The columns that scoring adds, by the kind of dataset."""
_LARGEST_GROUP = 4
"""A prompt's completions are kept in one chunk, unless that makes the chunk more than this many times too large."""


def score_dataset(
    source: RewardSource,
    table: Dataset,
    output: str | Path,
    *,
    chunk_rows: int = 2048,
    settings: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Add mean and variance columns to every row, and write .parquet or .jsonl.

    Rewards are centred over the completions of a prompt that stand one after the other; the rows of a preference
    dataset are groups of two. Finished chunks lie in `<output>.parts` until the end; the same call goes on from there.

    Args:
        table: `prompt` and `completion`, or `prompt`, `chosen` and `rejected`; other columns are kept.
        output: where the file goes; it appears when it is whole.
        chunk_rows: rows read, scored and written at a time.
        settings: what the run is bound to; another run's parts are refused.
        on_progress: called with (rows done, rows).

    Raises:
        DataError: columns are missing, a value is None (its row is named), or a name that would be added is taken.
        ConfigError: the output is neither .parquet nor .jsonl. RunError: the output exists, or another run is on it.
    """
    target = Path(output)
    if target.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"output must end in .parquet or .jsonl, got {target.name}")
    if target.exists():
        raise RunError(f"{target} exists; delete it or choose another output")
    if chunk_rows < 1:
        raise ConfigError(f"chunk_rows must be at least 1, got {chunk_rows}")
    kind = _check(table)
    parts = target.with_name(f"{target.name}.parts")
    bound = (settings or {}) | {"rows": len(table), "chunk_rows": chunk_rows, "source": source.name}
    claim_directory(parts, "score", bound)
    done = 0
    for start, end in _chunks(table, chunk_rows):
        part = parts / f"part-{start:012d}-{end:012d}.parquet"
        if not part.exists():
            rows = table[start:end]
            _write_whole(part, pa.table({**_columns(table, start, end), **_score(source, kind, rows)}))
        done = end
        if on_progress is not None:
            on_progress(done, len(table))
    _merge(sorted(parts.glob("part-*.parquet")), target)
    shutil.rmtree(parts)
    return target


def _check(table: Dataset) -> str:
    names = set(table.column_names)
    kind = "pairs" if {"chosen", "rejected"} <= names else "completions"
    needed = ["prompt", "completion"] if kind == "completions" else ["prompt", "chosen", "rejected"]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(
            f"scoring needs columns prompt and completion, or prompt, chosen and rejected; there is no "
            f"{' and no '.join(missing)} among {', '.join(sorted(names))}"
        )
    taken = sorted(names & set(ADDED[kind]))
    if taken:
        raise DataError(f"the dataset already has {', '.join(taken)}; rename or remove what would be overwritten")
    for name in needed:
        column = table.data.column(name)
        if column.null_count and table._indices is None:
            row = next(i for i, value in enumerate(column.is_null().to_pylist()) if value)
            raise DataError(f"row {row} has no {name} (None); fill it in or drop the row")
    return kind


def _chunks(table: Dataset, size: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of chunks that split no prompt's completions, where that can be."""
    start, count = 0, len(table)
    while start < count:
        end = min(start + size, count)
        limit = min(start + _LARGEST_GROUP * size, count)
        if end < count:
            last = table[end - 1]["prompt"]
            while end < limit and table[end]["prompt"] == last:
                end += 1
        yield start, end
        start = end


def _groups(prompts: Sequence[Any]) -> torch.Tensor:
    """Numbers that grow by one where a row's prompt differs from the row's before."""
    keys = prompt_keys(prompts)
    changes = [0, *(int(a != b) for a, b in pairwise(keys))]
    return torch.tensor(changes).cumsum(0)


def _score(source: RewardSource, kind: str, rows: dict[str, list[Any]]) -> dict[str, pa.Array]:
    if kind == "completions":
        scores = source.score(rows["prompt"], rows["completion"])
        found = source.estimate(scores, _groups(rows["prompt"]))
        return dict(zip(ADDED[kind], _arrays(found), strict=True))
    sides = [source.score(rows["prompt"], rows[side]) for side in ("chosen", "rejected")]
    count = len(sides[0])
    found = source.estimate(torch.cat(sides), torch.arange(count).repeat(2))
    mean, variance = _arrays(found)
    columns = [mean[:count], variance[:count], mean[count:], variance[count:]]
    if found.has_variance:
        margins = source.margins(*sides)
        columns += [_array(margins.mean), _array(margins.variance)]
    else:
        columns += [_array(found.mean[:count] - found.mean[count:]), pa.nulls(count, pa.float64())]
    return dict(zip(ADDED[kind], columns, strict=True))


def _arrays(found: RewardEstimate) -> tuple[pa.Array, pa.Array]:
    """Mean and variance; null where there is none, never 0."""
    variance = _array(found.variance) if found.has_variance else pa.nulls(len(found), pa.float64())
    return _array(found.mean), variance


def _array(values: torch.Tensor) -> pa.Array:
    return pa.array(values.to(torch.float64).numpy(), from_pandas=True)


def _columns(table: Dataset, start: int, end: int) -> dict[str, Any]:
    part = table.select(range(start, end)).with_format("arrow")[:]
    return {name: part.column(name) for name in part.column_names}


def _write_whole(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _merge(parts: list[Path], target: Path) -> None:
    """One file of all parts, a part in memory at a time."""
    temporary = target.with_name(f".{target.name}.{fingerprint(str(target))}")
    if target.suffix == ".jsonl":
        with temporary.open("w", encoding="utf-8") as file:
            for part in parts:
                for row in pq.read_table(part).to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    else:
        with pq.ParquetWriter(temporary, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
    os.replace(temporary, target)
