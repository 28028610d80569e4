"""Preference pairs in TRL's formats, checked row by row before any work is begun."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from trl import extract_prompt, is_conversational

from surefoot.data.loading import open_dataset
from surefoot.errors import DataError

__all__ = [
    "check_preferences",
    "data_hash",
    "keep_usable",
    "load_preferences",
    "load_prompts",
    "require_columns",
    "split_by_prompt",
]

BadRows = Literal["error", "drop"]
_SHOWN_ROWS = 5


def load_preferences(
    name: str | Path, *, split: str | None = None, config: str | None = None, bad_rows: BadRows = "error"
) -> Dataset:
    """Pairs with columns `prompt`, `chosen`, `rejected` (and `margin`, if there), all usable.

    Args:
        name, split, config: as in `open_dataset`.
        bad_rows: what to do with rows that have an empty side or a margin that is no number: "error" names them,
            "drop" leaves them out with a warning that counts them.

    Raises:
        DataError: a column is missing (the nearest one is named), rows are bad, or none is left.
    """
    return check_preferences(open_dataset(name, split=split, config=config), str(name), bad_rows=bad_rows)


def check_preferences(table: Dataset, name: str = "the dataset", *, bad_rows: BadRows = "error") -> Dataset:
    """Check every row of a preference dataset, standard or conversational, with explicit or implicit prompt.

    Raises:
        DataError: as `load_preferences`.
    """
    require_columns(table, ("chosen", "rejected"), name)
    if len(table) == 0:
        raise DataError(f"{name} is empty")
    return _with_explicit_prompt(keep_usable(table, _bad_rows(table), name, bad_rows))


def keep_usable(
    table: Dataset, bad: dict[int, str], name: str, bad_rows: BadRows, numbers: Sequence[int] | None = None
) -> Dataset:
    """The table without its bad rows (with a warning that counts them), or an error that names them.

    Args:
        bad: row to what is wrong with it.
        numbers: each row's number in the file, where rows have been left out before.

    Raises:
        DataError: rows are bad and `bad_rows` is "error", or none is left.
    """
    if not bad:
        return table
    place = range(len(table)) if numbers is None else numbers
    if bad_rows == "error":
        shown = "; ".join(f"row {place[row]}: {what}" for row, what in list(bad.items())[:_SHOWN_ROWS])
        more = f"; and {len(bad) - _SHOWN_ROWS} more" if len(bad) > _SHOWN_ROWS else ""
        raise DataError(f"{name} has {len(bad)} unusable rows ({shown}{more}); mend them, or set bad_rows: drop")
    if len(bad) == len(table):
        raise DataError(f"no row of {name} is usable; the first: {next(iter(bad.values()))}")
    listed = ", ".join(str(place[row]) for row in list(bad)[:_SHOWN_ROWS]) + (", …" if len(bad) > _SHOWN_ROWS else "")
    warnings.warn(f"{name}: {len(bad)} of {len(table)} rows left out (rows {listed})", stacklevel=3)
    return table.select([row for row in range(len(table)) if row not in bad])


def require_columns(table: Dataset, columns: tuple[str, ...], name: str) -> None:
    for column in columns:
        if column not in table.column_names:
            near = difflib.get_close_matches(column, table.column_names, 1, cutoff=0.5)
            hint = f"; did you mean to rename '{near[0]}'?" if near else ""
            raise DataError(f"{name} has no column '{column}'; it has {', '.join(table.column_names)}{hint}")


def _bad_rows(table: Dataset) -> dict[int, str]:
    """Row number to what is wrong with it."""
    columns = [c for c in ("prompt", "chosen", "rejected", "margin") if c in table.column_names]
    bad: dict[int, str] = {}
    for row, values in enumerate(zip(*(table[c] for c in columns), strict=True)):
        for column, value in zip(columns, values, strict=True):
            problem = _problem(column, value)
            if problem is not None:
                bad.setdefault(row, problem)
    return bad


def _problem(column: str, value: Any) -> str | None:
    if value is None:
        return f"{column} is None"
    if column == "margin":
        return None if isinstance(value, int | float) and math.isfinite(value) else f"margin is {value}"
    if column != "prompt" and _is_empty(value):
        return f"{column} is empty"
    if not isinstance(value, str | list):
        return f"{column} is {type(value).__name__}, not text or messages"
    return None


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return not value or any(message.get("content") in (None, "") for message in value)


def _with_explicit_prompt(table: Dataset) -> Dataset:
    if "prompt" in table.column_names:
        return table
    if is_conversational(table[0]):
        return table.map(extract_prompt)
    return table.add_column("prompt", [""] * len(table))


def load_prompts(
    name: str | Path, *, split: str | None = None, config: str | None = None, beside: Sequence[str] = ()
) -> Dataset:
    """The `prompt` column of a prompt or preference dataset, each prompt once, in order.

    Args:
        beside: columns to keep as well where the dataset has them, from a prompt's first row.

    Raises:
        DataError: there is no column `prompt`, or a prompt is None or empty (its row is named).
    """
    table = open_dataset(name, split=split, config=config)
    if "prompt" not in table.column_names and {"chosen", "rejected"} <= set(table.column_names):
        table = _with_explicit_prompt(table)
    require_columns(table, ("prompt",), str(name))
    seen: set[str] = set()
    rows = []
    for row, prompt in enumerate(table["prompt"]):
        if prompt is None or _is_empty(prompt):
            raise DataError(f"{name}: the prompt of row {row} is empty; mend or remove the row")
        key = json.dumps(prompt)
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return table.select(rows).select_columns(["prompt", *(name for name in beside if name in table.column_names)])


def split_by_prompt(table: Dataset, held_out: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows into (train, held out) so that no prompt is on both sides; a prompt's side depends on seed and text.

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


def data_hash(table: Dataset) -> str:
    """Sixteen hex digits of the SHA-256 of the rows' content; the same rows in the same order give the same."""
    digest = hashlib.sha256()
    for row in table:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
