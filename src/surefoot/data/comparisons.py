"""Load labelled comparisons: preference pairs, RewardBench's pairs, and RewardBench 2's best of four with ties."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from surefoot.data.loading import open_dataset
from surefoot.data.messages import as_messages
from surefoot.data.preferences import check_preferences
from surefoot.data.usable import BadRows, keep_usable, require_columns
from surefoot.errors import DataError
from surefoot.types import Text

__all__ = ["Comparisons", "load_comparisons"]

Format = Literal["pairs", "rewardbench", "rewardbench2"]
Indices = NDArray[np.int64]

_ROW = "__row__"
"""Column with each row's number in the file, for error messages."""

_COUNTS = ("num_correct", "num_incorrect", "total_completions")


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Labelled items: each is a prompt with completions, some right and some wrong.

    Args:
        name: of the dataset.
        format: "pairs" (TRL's), "rewardbench" (pairs of allenai/reward-bench) or "rewardbench2" (one or more right
            completions against several wrong ones, as in allenai/reward-bench-2).
        prompts, completions: one per row.
        items: (rows,) which item a row belongs to: 0 … n−1, ascending, so that an item's rows are adjacent; its right
            ones come first.
        correct: (rows,) whether the completion is a right one.
        subsets: one per item; "" where the data name none.
        ids: one per item: the data's own `id`, or the row's number.

    Raises:
        DataError: the parts don't fit each other, an item lacks a right or a wrong completion, or an item of
            "rewardbench" has more than those two.
    """

    name: str
    format: Format
    prompts: list[Text]
    completions: list[Text]
    items: Indices
    correct: NDArray[np.bool_]
    subsets: list[str]
    ids: list[str]

    def __post_init__(self) -> None:
        rows, n = len(self.prompts), len(self.ids)
        sizes = (len(self.completions), len(self.items), len(self.correct))
        if sizes != (rows, rows, rows) or len(self.subsets) != n:
            raise DataError(
                f"Comparisons '{self.name}': {rows} prompts, but {sizes[0]} completions, {sizes[1]} items and "
                f"{sizes[2]} labels; or {n} ids, but {len(self.subsets)} subsets"
            )
        steps = np.diff(self.items, prepend=-1, append=n)
        if n == 0 or ((steps != 0) & (steps != 1)).any():
            raise DataError(f"Comparisons '{self.name}': items must be 0 … {n - 1}, ascending, each with a row")
        right = np.bincount(self.items[self.correct], minlength=n)
        poor = np.flatnonzero((right == 0) | (right == np.bincount(self.items)))
        if len(poor):
            raise DataError(
                f"Comparisons '{self.name}': item {self.ids[poor[0]]} needs a right and a wrong completion"
            )
        if (self.correct[1:] & ~self.correct[:-1] & (steps[1:-1] == 0)).any():
            raise DataError(f"Comparisons '{self.name}': the right completions of an item come before its wrong ones")
        if self.format == "rewardbench" and rows != 2 * n:
            raise DataError(f"Comparisons '{self.name}': an item of RewardBench is one pair; {n} have {rows} rows")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.ids)

    def pairs(self) -> tuple[Indices, Indices, Indices]:
        """(chosen row, rejected row, item) of every right × wrong combination within an item, in the rows' order."""
        right, wrong = np.flatnonzero(self.correct), np.flatnonzero(~self.correct)
        item = self.items[right]
        first = np.searchsorted(self.items[wrong], item)
        many = np.searchsorted(self.items[wrong], item, side="right") - first
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        return np.repeat(right, many), wrong[np.repeat(first, many) + within], np.repeat(item, many)


def load_comparisons(
    name: str | Path | Dataset,
    *,
    split: str | None = None,
    config: str | None = None,
    bad_rows: BadRows = "error",
    conversational: bool = True,
) -> Comparisons:
    """Open a dataset of comparisons, infer its format from its columns, and check every row.

    Three formats:

    - RewardBench 2: `chosen` and `rejected` are lists of texts, beside `prompt`, `subset` and `id`. Where
      `num_correct`, `num_incorrect` or `total_completions` are there, they must agree with the lists. Items of its
      subset Ties have ids "ref:N" or "tied:N", each once; a tied one has two or more right completions.
    - RewardBench: `chosen` and `rejected` are texts, beside `subset` and `chosen_model` or `rejected_model`.
    - anything else is preference pairs in any layout (`rows.py`); a `subset` and an `id` are taken if they are there.

    Args:
        name, split, config: as in `open_dataset`; or a dataset in memory.
        bad_rows: "error" names unusable rows, "drop" leaves them out with a warning that counts them.
        conversational: give RewardBench's texts as one message of the user and one of the assistant, so that a model
            reads them through its own chat template, as reward-bench does (rewardbench/utils.py,
            `prepare_dialogue_from_tokenizer`). False leaves them plain text, for a model that has no template; its
            figures are then not comparable with the leaderboard's.

    Raises:
        DataError: a column is missing (the nearest one is named), rows are bad, or none is left.
    """
    table = name if isinstance(name, Dataset) else open_dataset(name, split=split, config=config)
    table = table.add_column(_ROW, list(range(len(table))))
    where = "the dataset" if isinstance(name, Dataset) else str(name)
    kind = _format(table)
    if kind == "rewardbench2":
        require_columns(table, ("prompt", "chosen", "rejected", "subset", "id"), where)
        table = keep_usable(table, dict(_bad_items(table)), where, bad_rows, list(table[_ROW]))
        items = _lists_of_texts(table)
    else:
        table = check_preferences(table, where, bad_rows=bad_rows)
        if kind == "rewardbench":
            table = keep_usable(table, dict(_without_subset(table)), where, bad_rows, list(table[_ROW]))
        items = _pairs_of_texts(table)
    return _comparisons(where, kind, table, items, conversational and kind != "pairs")


Item = tuple[Text, list[Text], list[Text]]
"""(prompt, right completions, wrong completions)."""


def _comparisons(name: str, kind: Format, table: Dataset, items: Iterator[Item], conversational: bool) -> Comparisons:
    prompts: list[Text] = []
    completions: list[Text] = []
    numbers: list[int] = []
    correct: list[bool] = []
    for number, (prompt, right, wrong) in enumerate(items):
        count = len(right) + len(wrong)
        chat = conversational or not isinstance(prompt, str)
        prompts += [_messages("user", prompt) if chat else prompt] * count
        completions += [_messages("assistant", text) if chat else text for text in (*right, *wrong)]
        numbers += [number] * count
        correct += [True] * len(right) + [False] * len(wrong)
    return Comparisons(
        name=name,
        format=kind,
        prompts=prompts,
        completions=completions,
        items=np.array(numbers, dtype=np.int64),
        correct=np.array(correct, dtype=np.bool_),
        subsets=["" if value is None else str(value) for value in _column(table, "subset")],
        ids=[
            str(row if value is None else value) for value, row in zip(_column(table, "id"), table[_ROW], strict=True)
        ],
    )


def _column(table: Dataset, column: str) -> list[Any]:
    return list(table[column]) if column in table.column_names else [None] * len(table)


def _messages(role: str, text: Text) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else as_messages(text)


def _lists_of_texts(table: Dataset) -> Iterator[Item]:
    for prompt, chosen, rejected in zip(table["prompt"], table["chosen"], table["rejected"], strict=True):
        yield prompt, list(chosen), list(rejected)


def _pairs_of_texts(table: Dataset) -> Iterator[Item]:
    for prompt, chosen, rejected in zip(table["prompt"], table["chosen"], table["rejected"], strict=True):
        yield prompt, [chosen], [rejected]


def _format(table: Dataset) -> Format:
    columns = set(table.column_names)
    kinds = {_kind(table, column) for column in ("chosen", "rejected") if column in columns}
    if "texts" in kinds:
        return "rewardbench2"
    if kinds == {"text"} and "subset" in columns and columns & {"chosen_model", "rejected_model"}:
        return "rewardbench"
    return "pairs"


def _kind(table: Dataset, column: str) -> Literal["text", "texts", "messages"] | None:
    """Kind of values in a column, judged by the first value that isn't None or an empty list."""
    for row, value in enumerate(table[column]):
        if isinstance(value, str):
            return "text"
        inner = next((part for part in value if part is not None), None) if isinstance(value, list) else None
        if isinstance(inner, str):
            return "texts"
        if isinstance(inner, dict):
            return "messages"
        if inner is not None:
            raise DataError(
                f"row {row}: {column} is a list of {type(inner).__name__}; give a text, a list of messages, or a "
                "list of texts (RewardBench 2)"
            )
    return None


def _without_subset(table: Dataset) -> Iterator[tuple[int, str]]:
    """Rows of RewardBench that name no subset."""
    for row, subset in enumerate(_column(table, "subset")):
        if not subset:
            yield row, f"subset is {'None' if subset is None else 'empty'}"


def _bad_items(table: Dataset) -> Iterator[tuple[int, str]]:
    ties: dict[str, int] = {}
    counts = [column for column in _COUNTS if column in table.column_names]
    for row, values in enumerate(table.select_columns(["prompt", "chosen", "rejected", "subset", "id", *counts])):
        problem = _problem_of_item(values) or _problem_of_ties(values, ties)
        if problem is not None:
            yield row, problem
        elif _is_ties(values["subset"]):
            ties[values["id"]] = table[_ROW][row]


def _problem_of_item(values: dict[str, Any]) -> str | None:
    for column in ("prompt", "subset", "id"):
        if values[column] is None:
            return f"{column} is None"
    if not isinstance(values["prompt"], str | list):
        return f"prompt is {type(values['prompt']).__name__}, not text or messages"
    for column in ("chosen", "rejected"):
        texts = values[column]
        if not texts:
            return f"{column} is {'None' if texts is None else 'empty'}"
        if not isinstance(texts, list):
            return f"{column} is {type(texts).__name__}, not a list of completions"
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                return f"{column}[{place}] is {'None' if text is None else type(text).__name__ + ', not text'}"
            if not text.strip():
                return f"{column}[{place}] is empty"
    right, wrong = len(values["chosen"]), len(values["rejected"])
    for column, count in zip(_COUNTS, (right, wrong, right + wrong), strict=True):
        if values.get(column, count) != count:
            return f"{column} is {values[column]}, but the row holds {count}"
    return None


def _problem_of_ties(values: dict[str, Any], earlier: dict[str, int]) -> str | None:
    if not _is_ties(values["subset"]):
        return None
    named = re.fullmatch(r"(ref|tied):\d+", str(values["id"]))
    if named is None:
        return f"id is '{values['id']}', but items of subset {values['subset']} are named ref:N or tied:N"
    if values["id"] in earlier:
        return f"id {values['id']} is that of row {earlier[values['id']]} too"
    if named[1] == "tied" and len(values["chosen"]) < 2:
        return "a tied item needs two or more right completions, but chosen holds 1"
    return None


def _is_ties(subset: str) -> bool:
    return subset.lower() == "ties"
