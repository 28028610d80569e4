"""Pairs of completions to label: the candidates of each prompt, and files of pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from surefoot.data.loading import open_dataset
from surefoot.data.messages import is_blank
from surefoot.data.rows import read_pair
from surefoot.errors import ConfigError, DataError
from surefoot.files import fingerprint
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.types import Text

__all__ = ["Pair", "candidate_pairs", "distinct", "pair_id", "pairs_fingerprint", "prompt_numbers", "read_pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, in no particular order.

    Args:
        id: hash of the texts; the same whichever completion comes first.
    """

    id: str
    prompt: Text
    a: Text
    b: Text


def pair_id(prompt: Text, a: Text, b: Text) -> str:
    """Hash of a pair's texts, sixteen hex digits; swapping the completions doesn't change it."""
    return fingerprint([prompt, sorted(map(_key, (a, b)))])


def _key(text: Text) -> str:
    return json.dumps(text, sort_keys=True, ensure_ascii=False)


def read_pairs(name: str | Path) -> list[Pair]:
    """Read pairs from a file of `surefoot select`, or from preferences, whose labels are then not looked at.

    Args:
        name: a file with `prompt`, `completion_a`, `completion_b`, or with `chosen`, `rejected` in any layout.

    Raises:
        DataError: columns are missing, or a row can't be read or holds one text twice.
    """
    table = open_dataset(name)
    columns = set(table.column_names)
    sides = next((sides for sides in _SIDES if set(sides) <= columns), None)
    if sides is None:
        raise DataError(
            f"{name} has neither completion_a and completion_b nor chosen and rejected among "
            f"{', '.join(sorted(columns))}"
        )
    prompt = ["prompt"] if "prompt" in columns else []
    return [
        _read(row, sides, f"{name}: row {place}") for place, row in enumerate(table.select_columns([*prompt, *sides]))
    ]


_SIDES = (("completion_a", "completion_b"), ("chosen", "rejected"))


def _read(row: dict[str, Any], sides: tuple[str, str], where: str) -> Pair:
    try:
        texts = read_pair({**row, "chosen": row[sides[0]], "rejected": row[sides[1]]})
    except DataError as error:
        raise DataError(f"{where}: {error}; mend or drop the row") from None
    if texts[1] == texts[2]:
        raise DataError(f"{where}: both completions are the same text, so there is nothing to compare; drop the row")
    return Pair(pair_id(*texts), *texts)


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs without repetitions, in the order of their first row."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.id, pair)
    return list(first.values())


def pairs_fingerprint(pairs: Sequence[Pair]) -> str:
    """Hash of which pairs these are and in which order."""
    return fingerprint([pair.id for pair in pairs])


def prompt_numbers(prompts: Sequence[Text]) -> Int[Tensor, "completions"]:
    """Number of each completion's prompt, in the order of first appearance; equal for equal prompts."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in prompt_keys(list(prompts))], dtype=torch.long)


def candidate_pairs(
    prompts: Int[Tensor, "completions"], completions: Sequence[Text], most: int, seed: int
) -> tuple[Int[Tensor, "pairs 2"], int]:
    """All pairs of different completions of one prompt, each once.

    Completions with the same text count once, by their first row: no pair compares a text with itself. Empty ones
    don't count: nobody can be asked about them.

    Args:
        prompts: number of each completion's prompt.
        most: where there are more pairs, so many are drawn uniformly, without repetition.

    Returns:
        (rows of the two completions of each pair, how many pairs there are).

    Raises:
        DataError: no prompt has two different completions.
    """
    if most < 1:
        raise ConfigError(f"max_pairs must be at least 1, got {most}")
    groups = _distinct_rows(prompts, completions)
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    total = int(ends[-1]) if len(ends) else 0
    if total == 0:
        raise DataError("no prompt has two different completions; draw several of each prompt from the policy")
    if total > most:
        ranks = np.sort(np.random.default_rng(seed).choice(total, most, replace=False, shuffle=False))
    else:
        ranks = np.arange(total)
    group = np.searchsorted(ends, ranks, side="right")
    inside = ranks - np.where(group > 0, ends[group - 1], 0)
    second = _triangle_row(inside)
    first = inside - second * (second - 1) // 2
    starts = np.cumsum(sizes) - sizes
    rows = np.concatenate([np.array(group, dtype=np.int64) for group in groups])
    return torch.from_numpy(np.stack([rows[starts[group] + first], rows[starts[group] + second]], axis=1)), total


def _distinct_rows(prompts: Int[Tensor, "completions"], completions: Sequence[Text]) -> list[list[int]]:
    """Rows of each prompt's different completions that aren't empty."""
    groups: dict[int, dict[str, int]] = {}
    for row, (prompt, completion) in enumerate(zip(prompts.tolist(), completions, strict=True)):
        if not is_blank(completion):
            groups.setdefault(prompt, {}).setdefault(_key(completion), row)
    return [list(group.values()) for group in groups.values()]


def _triangle_row(rank: "np.ndarray[Any, np.dtype[np.int64]]") -> "np.ndarray[Any, np.dtype[np.int64]]":
    """j of the pair (i, j), i < j, that has this rank in (0, 1), (0, 2), (1, 2), (0, 3), …"""
    row = ((1 + np.sqrt(1 + 8 * rank.astype(np.float64))) // 2).astype(np.int64)
    row -= row * (row - 1) // 2 > rank  # the root is rounded
    return row + (row * (row + 1) // 2 <= rank)
