"""Load preference pairs, completions and prompts in any layout, and check every row.

`rows.py` reads one row; this module reads tables with it, so that every caller gets one format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

from surefoot.data.loading import open_dataset
from surefoot.data.messages import is_blank
from surefoot.data.rows import read_completion, read_pair, read_prompt
from surefoot.data.usable import BadRows, keep_usable, require_columns
from surefoot.errors import DataError
from surefoot.types import Text

__all__ = [
    "Objection",
    "check_preferences",
    "data_hash",
    "load_completions",
    "load_preferences",
    "load_prompts",
    "readings",
    "split_by_prompt",
]

Objection = Callable[[Text, Text], str | None]
"""Function of (prompt, completion) that says why a model can't read them, such as its chat template's refusal; None if
it can."""
_PAIR = ("prompt", "chosen", "rejected")
_COMPLETION = ("prompt", "completion")


def load_preferences(
    name: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    bad_rows: BadRows = "error",
    objection: Objection | None = None,
) -> Dataset:
    """Load preference pairs as columns `prompt`, `chosen`, `rejected` (and `margin`, if there), in one format.

    Args:
        name, split, config: as in `open_dataset`. `rows.py` lists the layouts.
        bad_rows: what to do with rows that can't be read, have an empty side, another format than most rows, or a
            margin that is no number: "error" names them, "drop" leaves them out with a warning that counts them.
        objection: of the model that is to read them; such rows are bad ones.

    Raises:
        DataError: a column is missing (the nearest one is named), rows are bad, or none is left.
    """
    table = open_dataset(name, split=split, config=config)
    return check_preferences(table, str(name), bad_rows=bad_rows, objection=objection)


def check_preferences(
    table: Dataset, name: str = "the dataset", *, bad_rows: BadRows = "error", objection: Objection | None = None
) -> Dataset:
    """Read and check every row of a preference dataset, as `load_preferences` does.

    Raises:
        DataError: as `load_preferences`.
    """
    require_columns(table, ("chosen", "rejected"), name)
    if len(table) == 0:
        raise DataError(f"{name} is empty")
    read = list(readings(table, read_pair, objection=objection))
    if "margin" in table.column_names:
        read = [_margin_problem(margin) or reading for reading, margin in zip(read, table["margin"], strict=True)]
    return _usable(table, read, _PAIR, name, bad_rows)


def readings(
    table: Dataset, reader: Callable[[dict[str, Any]], tuple[Text, ...]], *, objection: Objection | None = None
) -> Iterator[tuple[Text, ...] | str]:
    """Read each row, or say what is wrong with it; a few rows are in memory at a time.

    Args:
        reader: of `rows.py`.
        objection: as in `load_preferences`.
    """
    for row in table.select_columns([name for name in {*_PAIR, *_COMPLETION} if name in table.column_names]):
        try:
            prompt, *sides = reader(row)
        except DataError as error:
            yield str(error)
            continue
        problems = (objection(prompt, side) for side in sides) if objection is not None else iter(())
        yield next((problem for problem in problems if problem is not None), (prompt, *sides))


def _usable(
    table: Dataset, read: list[tuple[Text, ...] | str], columns: tuple[str, ...], name: str, bad_rows: BadRows | None
) -> Dataset:
    """The table's usable rows, with their values as they were read."""
    bad = {row: reading for row, reading in enumerate(read) if isinstance(reading, str)}
    bad |= _of_another_format(read)
    kept = [reading for row, reading in enumerate(read) if row not in bad]
    table = keep_usable(table, dict(sorted(bad.items())), name, bad_rows)
    return _with_columns(table, dict(zip(columns, map(list, zip(*kept, strict=True)), strict=True)))


def _of_another_format(read: Sequence[tuple[Text, ...] | str]) -> dict[int, str]:
    """Rows that hold text where most rows hold messages, or messages where most hold text."""
    formats = {
        row: "text" if isinstance(reading[-1], str) else "messages"
        for row, reading in enumerate(read)
        if not isinstance(reading, str)
    }
    common = Counter(formats.values()).most_common(1)
    return {
        row: f"holds {kind}, but most rows hold {common[0][0]}"
        for row, kind in formats.items()
        if kind != common[0][0]
    }


def _with_columns(table: Dataset, columns: dict[str, list[Text]]) -> Dataset:
    """The table with these columns; columns that already hold these values stay as they are stored.

    Messages are stored as JSON, so that none gets another one's keys.
    """
    new = {name: values for name, values in columns.items() if not _holds(table, name, values)}
    if not new:
        return table
    features = {name: Value("string") if isinstance(values[0], str) else List(Json()) for name, values in new.items()}
    beside = Dataset.from_dict(new, features=Features(features))
    rest = table.remove_columns([name for name in new if name in table.column_names])
    return concatenate_datasets([rest, beside], axis=1) if rest.column_names else beside


def _holds(table: Dataset, name: str, values: list[Text]) -> bool:
    return name in table.column_names and all(old == new for old, new in zip(table[name], values, strict=True))


def _margin_problem(margin: Any) -> str | None:
    if margin is None:
        return "margin is None"
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
    return None if number else f"margin is {margin}"


def load_completions(name: str | Path, *, split: str | None = None, config: str | None = None) -> Dataset:
    """Load rows with `prompt` and `completion` in one format; other columns are kept.

    Raises:
        DataError: a column is missing, or rows can't be read (they are named).
    """
    table = open_dataset(name, split=split, config=config)
    require_columns(table, _COMPLETION, str(name))
    return _usable(table, list(readings(table, read_completion)), _COMPLETION, str(name), None)


def load_prompts(
    name: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    beside: Sequence[str] = (),
    objection: Objection | None = None,
) -> Dataset:
    """Load the different prompts of a prompt, completion or preference dataset as column `prompt`, in order.

    Args:
        beside: columns to keep as well where the dataset has them, from a prompt's first row.
        objection: of the policy that is to read them; its completion is empty.

    Raises:
        DataError: there is no column `prompt` nor pairs that hold one, or prompts are None, empty, unreadable or of
            several formats (their rows are named).
    """
    table = open_dataset(name, split=split, config=config)
    columns = _reading(table, str(name), beside)
    reader = {_PAIR: read_pair, _COMPLETION: read_completion}.get(columns, lambda row: (read_prompt(row),))
    read = [
        reading if isinstance(reading, str) else _prompt_problem(reading[0], objection) or reading
        for reading in readings(table, reader)
    ]
    table = _usable(table, read, columns, str(name), None)
    seen: dict[str, int] = {}
    for row, prompt in enumerate(table["prompt"]):
        seen.setdefault(json.dumps(prompt), row)
    kept = [column for column in beside if column in table.column_names]
    return table.select(list(seen.values())).select_columns(["prompt", *kept])


def _reading(table: Dataset, name: str, beside: Sequence[str]) -> tuple[str, ...]:
    """The columns to read: the prompt, and the sides or the completion if they are wanted."""
    for wanted in (_PAIR, _COMPLETION):
        if set(wanted[1:]) <= set(table.column_names):
            return wanted if set(wanted[1:]) <= set(beside) else ("prompt",)
    require_columns(table, ("prompt",), name)
    return ("prompt",)


def _prompt_problem(prompt: Text, objection: Objection | None) -> str | None:
    if is_blank(prompt):
        return "prompt is empty"
    return None if objection is None else objection(prompt, "" if isinstance(prompt, str) else [])


def split_by_prompt(table: Dataset, held_out: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows into (train, held out) by prompt; a prompt's side depends on the seed and its text alone.

    Args:
        held_out: share of prompts to hold out, in (0, 1).

    Raises:
        DataError: one side would be empty.
    """
    if not 0 < held_out < 1:
        raise DataError(f"the held-out share must lie between 0 and 1, got {held_out}")
    keys = [json.dumps([seed, prompt]) for prompt in table["prompt"]]
    aside = [int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8 < held_out for key in keys]
    if all(aside) or not any(aside):
        raise DataError(
            f"{len(table)} rows are too few to hold out {held_out:.0%} of their prompts; give a test split"
        )
    rows = range(len(table))
    return table.select([i for i in rows if not aside[i]]), table.select([i for i in rows if aside[i]])


def data_hash(*tables: Dataset) -> str:
    """Hash of the rows' content and order: sixteen hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for row in (row for table in tables for row in table):
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
