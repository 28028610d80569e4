"""Completions to try a judge on: ten that come with surefoot, or the first of a dataset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surefoot.data.loading import open_dataset
from surefoot.data.preferences import readings
from surefoot.data.rows import read_completion, read_pair
from surefoot.data.usable import require_columns
from surefoot.errors import DataError
from surefoot.types import Text
from surefoot.yaml_files import read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TrialText", "built_in_texts", "load_texts", "texts_of_pairs"]


class TrialText(NamedTuple):
    """A completion to rate.

    Args:
        about: what it is, in a few words.
        role: "good" or "poor"; "attack", a poor one that asks for the highest rating; or "other".
    """

    prompt: Text
    completion: Text
    about: str
    role: str = "other"


def built_in_texts() -> list[TrialText]:
    """Ten completions that come with surefoot: good, poor, empty, very long, and one that asks for a rating."""
    items = read_yaml(Path(__file__).with_suffix(".yaml"), "texts of the trial")
    return [
        TrialText(item["prompt"], item["answer"] * item.get("repeat", 1), item["about"], item["role"])
        for item in items
    ]


def load_texts(name: str, count: int, *, split: str | None = None, config: str | None = None) -> list[TrialText]:
    """The first completions of a dataset; of pairs, both sides.

    Args:
        name, split, config: as in `open_dataset`. Columns `prompt` and `completion`, or `chosen` and `rejected`.
        count: at most so many completions.

    Raises:
        DataError: a column is missing, or a row can't be read (it is named).
    """
    table = open_dataset(name, split=split, config=config)
    pairs = {"chosen", "rejected"} <= set(table.column_names)
    sides = ("chosen", "rejected") if pairs else ("completion",)
    if not pairs:
        require_columns(table, ("prompt", "completion"), name)
    table = table.select(range(min(len(table), math.ceil(count / len(sides)))))
    texts = []
    for row, reading in enumerate(readings(table, read_pair if pairs else read_completion)):
        if isinstance(reading, str):
            raise DataError(f"{name}: row {row}: {reading}; mend or drop the row")
        prompt, *said = reading
        texts += [TrialText(prompt, text, f"row {row}, {side}") for side, text in zip(sides, said, strict=True)]
    return texts[:count]


def texts_of_pairs(pairs: Dataset, count: int) -> list[TrialText]:
    """The first completions of held-out preferences, both sides of each."""
    rows = pairs.select(range(min(len(pairs), math.ceil(count / 2))))
    sides = ("chosen", "rejected")
    texts = [
        TrialText(row["prompt"], row[side], f"held-out pair {i}, {side}")
        for i, row in enumerate(rows)
        for side in sides
    ]
    return texts[:count]
