"""Score a dataset of any size with any source, in resumable blocks of whole prompts, into one file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from surefoot.data.loading import open_dataset
from surefoot.data.preferences import readings
from surefoot.data.rows import read_completion, read_pair
from surefoot.errors import ConfigError, DataError, RunError, naming_rows
from surefoot.files import fingerprint, whole_file
from surefoot.records import claim_directory
from surefoot.rewards.anchored import estimate_anchored
from surefoot.rewards.anchors import AnchorStore, group_anchors, prompt_digest
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.types import RewardEstimate, Text

__all__ = ["ADDED", "ANCHOR", "anchor_names", "estimate_rows", "prompt_blocks", "prompt_numbers", "score_dataset"]

ANCHOR = "anchor"
"""Column with the kind of anchor of each row: reference, dataset or calibration."""
ADDED = {
    "completions": ("reward_mean", "reward_variance", ANCHOR),
    "pairs": (
        *("chosen_mean", "chosen_variance", "rejected_mean", "rejected_variance"),
        *("margin_mean", "margin_variance", ANCHOR),
    ),
}
"""The columns that scoring adds, by the kind of dataset."""
_ROW = "__row__"
_LARGEST_PROMPT = 4
"""A prompt's rows stay in one block, unless that makes the block more than this many times too large."""
_READERS: dict[str, Any] = {"completions": read_completion, "pairs": read_pair}
_COLUMNS = {"completions": ("prompt", "completion"), "pairs": ("prompt", "chosen", "rejected")}


def score_dataset(
    source: RewardSource | str | Path,
    table: Dataset | str | Path,
    output: str | Path,
    *,
    anchors: AnchorStore | None = None,
    chunk_rows: int = 2048,
    settings: dict[str, Any] | None = None,
    name: str = "the dataset",
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Add mean, variance and anchor columns to every row, and write .parquet or .jsonl.

    A row is centred by the reference policy's completions where `anchors` has its prompt; else by all completions that
    the dataset has for its prompt, wherever they stand; else, a completion without siblings, by the calibration set.
    `anchor` says which. Rows are scored prompt by prompt and written in their own order. Finished blocks lie in
    `<output>.parts` until the end; the same call goes on from there. Texts are in memory a block at a time, the new
    columns all at once.

    Args:
        source: what scores; or the directory or hub name of a source.
        table: a dataset in memory, or a file, directory or hub name, with `prompt` and `completion`, or `chosen` and
            `rejected` with or without `prompt`, in any layout (`surefoot.data.rows`); all columns are kept.
            Both sides of all pairs of a prompt count as its completions; where pairs have no prompt, those of the pair
            alone.
        output: where the file goes; it appears when it is whole.
        anchors: of `surefoot anchors`; prompts that it lacks fall back.
        chunk_rows: rows read, scored and written at a time. A prompt with more than four times as many is taken in
            several blocks, each its own anchor.
        settings: what the run is bound to; another run's parts are refused.
        name: of a dataset in memory, for errors.
        on_progress: called with (rows done, rows).

    Returns:
        The file. Rewards are in the source's unit, variances in that squared; both are null where nothing could be
        scored.

    Raises:
        DataError: there are no rows, columns are missing, a row can't be read (it is named), rows are partly text and
            partly messages, or a name that would be added is taken.
        ConfigError: the output is neither .parquet nor .jsonl. RunError: the output exists, or another run is on it.
    """
    if not isinstance(table, Dataset):
        name, table = str(table), open_dataset(table)
    source = source if isinstance(source, RewardSource) else load_source(source)
    target = Path(output)
    if target.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"output must end in .parquet or .jsonl, got {target.name}")
    if chunk_rows < 1:
        raise ConfigError(f"chunk_rows must be at least 1, got {chunk_rows}")
    kind = _check(table, name)
    parts = target.with_name(f"{target.name}.parts")
    bound = {"rows": len(table), "chunk_rows": chunk_rows, "source": source.name}
    bound["anchors"] = None if anchors is None else anchors.fingerprint()
    bound = (settings or {}) | bound
    done = target.with_name(f".{target.name}.{fingerprint(bound)}.done")
    if not target.exists():
        shutil.rmtree(done, ignore_errors=True)  # of an output that was deleted since
    elif not parts.exists() and not done.exists():
        raise RunError(f"{target} exists; delete it or choose another output")
    if not done.exists():
        with claim_directory(parts, "score", bound):
            if not target.exists():
                _score_in_parts(source, table, kind, target, parts, anchors, chunk_rows, name, on_progress)
            os.replace(parts, done)  # at once: a rerun tells from its name what it has still to remove
    shutil.rmtree(done, ignore_errors=True)
    return target


def _score_in_parts(
    source: RewardSource,
    table: Dataset,
    kind: str,
    target: Path,
    parts: Path,
    anchors: AnchorStore | None,
    chunk_rows: int,
    name: str,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    numbers = prompt_numbers(_prompts(table, kind, name), pairs=kind == "pairs")
    done = 0
    for block in prompt_blocks(numbers, chunk_rows):
        part = parts / f"part-{done:012d}-{done + len(block):012d}.parquet"
        if not part.exists():
            read = zip(*readings(table.select(block), _READERS[kind]), strict=True)
            rows = dict(zip(_COLUMNS[kind], map(list, read), strict=True))
            with naming_rows(lambda row, block=block: f"{name}: row {block[row]}"):  # type: ignore[misc]
                added = _score(source, kind, rows, torch.from_numpy(numbers[block]), anchors)
            with whole_file(part) as temporary:
                pq.write_table(pa.table({_ROW: block, **added}), temporary)
        done += len(block)
        if on_progress is not None:
            on_progress(done, len(table))
    _merge(table, sorted(parts.glob("part-*.parquet")), target, chunk_rows)


def _check(table: Dataset, name: str) -> str:
    if len(table) == 0:
        raise DataError(f"{name} is empty: there is nothing to score")
    names = set(table.column_names)
    kind = "pairs" if {"chosen", "rejected"} <= names else "completions"
    missing = [] if kind == "pairs" else [column for column in _COLUMNS[kind] if column not in names]
    if missing:
        raise DataError(
            f"scoring needs columns prompt and completion, or chosen and rejected; there is no "
            f"{' and no '.join(missing)} among {', '.join(sorted(names))}"
        )
    taken = sorted(names & set(ADDED[kind]))
    if taken:
        raise DataError(f"the dataset already has {', '.join(taken)}; rename or remove what would be overwritten")
    return kind


def _prompts(table: Dataset, kind: str, name: str) -> Iterator[Text]:
    """Yield every row's prompt, and refuse rows that can't be read or differ in format."""
    first = ""
    for row, reading in enumerate(readings(table, _READERS[kind])):
        if isinstance(reading, str):
            raise DataError(f"{name}: row {row}: {reading}; mend or drop the row")
        form = "text" if isinstance(reading[-1], str) else "messages"
        first = first or form
        if form != first:
            raise DataError(f"{name}: row {row} holds {form}, but the rows before it hold {first}; score them apart")
        yield reading[0]


def prompt_numbers(prompts: Iterable[Text], *, pairs: bool) -> NDArray[np.int64]:
    """Number of each row's prompt, (rows,), in the order of first appearance, equal for equal prompts.

    Args:
        pairs: whether rows are pairs; then an empty prompt, which says nothing of what belongs together, is a number
            of its own in each row.
    """
    seen: dict[str, int] = {}
    keys = (f"row {row}" if pairs and not prompt else prompt_digest(prompt) for row, prompt in enumerate(prompts))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def prompt_blocks(numbers: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield blocks of `size` rows or a few more, prompt by prompt, so that prompts are not split if possible."""
    order = np.argsort(numbers, kind="stable")
    start, count = 0, len(order)
    while start < count:
        end = min(start + size, count)
        limit = min(start + _LARGEST_PROMPT * size, count)
        while end < limit and numbers[order[end]] == numbers[order[end - 1]]:
            end += 1
        yield order[start:end]
        start = end


def estimate_rows(
    source: RewardSource,
    prompts: Sequence[Text],
    scores: Float[Tensor, "batch columns"],
    groups: Int[Tensor, "batch"],
    anchors: AnchorStore | None = None,
) -> RewardEstimate:
    """Estimate rows of a dataset by the best anchor that each has: reference, else dataset, else calibration.

    Args:
        prompts: one per row.
        scores: (batch, columns) of `RewardSource.score`.
        groups: (batch,) numbers of the prompts; rows that share one are its dataset completions.
        anchors: reference anchors of some prompts.
    """
    choices = [group_anchors(scores, groups, "dataset")]
    if anchors is not None:
        choices.insert(0, anchors.where_known(prompts, scores.shape[1]))
    return estimate_anchored(source, scores, choices)


def _score(
    source: RewardSource, kind: str, rows: dict[str, list[Any]], groups: torch.Tensor, anchors: AnchorStore | None
) -> dict[str, pa.Array]:
    prompts = rows["prompt"]
    if kind == "completions":
        estimate = estimate_rows(source, prompts, source.score(prompts, rows["completion"]), groups, anchors)
        return dict(zip(ADDED[kind], (*_arrays(estimate), pa.array(anchor_names(estimate), pa.string())), strict=True))
    sides = source.score_pairs(prompts, rows["chosen"], rows["rejected"])
    count = len(prompts)
    estimate = estimate_rows(source, [*prompts, *prompts], torch.cat(sides), groups.repeat(2), anchors)
    mean, variance = _arrays(estimate)
    columns = [mean[:count], variance[:count], mean[count:], variance[count:]]
    if estimate.has_variance:
        margins = source.margins(*sides)
        columns += [_array(margins.mean), _array(margins.variance)]
    else:
        columns += [_array(estimate.mean[:count] - estimate.mean[count:]), pa.nulls(count, pa.float64())]
    kinds = anchor_names(estimate)
    columns.append(pa.array([a or b for a, b in zip(kinds[:count], kinds[count:], strict=True)], pa.string()))
    return dict(zip(ADDED[kind], columns, strict=True))


def anchor_names(estimate: RewardEstimate) -> list[str | None]:
    """Kind of anchor of each row; None where it was not scored, or its variance takes no anchor."""
    scored = estimate.scored.tolist()
    return [kind if known else None for kind, known in zip(estimate.anchor_kinds, scored, strict=True)]


def _arrays(estimate: RewardEstimate) -> tuple[pa.Array, pa.Array]:
    """Mean and variance as Arrow arrays; null where there is none, never 0."""
    variance = _array(estimate.variance) if estimate.has_variance else pa.nulls(len(estimate), pa.float64())
    return _array(estimate.mean), variance


def _array(values: torch.Tensor) -> pa.Array:
    return pa.array(values.to(torch.float64).numpy(), from_pandas=True)


def _columns(table: Dataset, start: int, end: int) -> dict[str, Any]:
    part = table.select(range(start, end)).with_format("arrow")[:]
    return {name: part.column(name) for name in part.column_names}


def _merge(table: Dataset, parts: list[Path], target: Path, size: int) -> None:
    """Write the dataset's rows with the new columns, `size` rows in memory at a time."""
    added = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by(_ROW).drop_columns(_ROW)
    slices = (
        pa.table({**_columns(table, start, min(start + size, len(table))), **_named(added.slice(start, size))})
        for start in range(0, len(table), size)
    )
    with whole_file(target) as temporary:
        if target.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:
                for rows in slices:
                    for row in rows.to_pylist():
                        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        else:
            first = next(slices)
            with pq.ParquetWriter(temporary, first.schema) as writer:
                writer.write_table(first)
                for rows in slices:
                    writer.write_table(rows)


def _named(table: pa.Table) -> dict[str, Any]:
    return {name: table.column(name) for name in table.column_names}
