"""Load the criteria of each prompt from a dataset, or from a saved source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surefoot.data.rows import read_prompt
from surefoot.errors import DataError, ModelError
from surefoot.rewards.kinds.criteria.criterion import Criterion, read_criteria
from surefoot.rewards.trunk.text_encoder import prompt_keys

__all__ = ["ByPrompt", "load_criteria", "saved_criteria"]

ByPrompt = Mapping[str, tuple[Criterion, ...]]
"""Criteria under `prompt_keys`."""

_PROMPTS = ("prompt", "question", "instruction")
_COLUMNS = ("criteria", "rubrics", "rubric")


def load_criteria(name: str) -> ByPrompt:
    """Read the prompt and the criteria of every row of a file or hub dataset; the first column counts of

    - `prompt`, `question`, `instruction`: text or messages;
    - `criteria`, `rubrics`, `rubric`: a list that `read_criteria` reads.

    Raises:
        DataError: a column is missing, a row can't be read, or a prompt has two different lists.
    """
    from surefoot.data.loading import open_dataset

    table = open_dataset(name)
    found = [next((one for one in some if one in table.column_names), None) for some in (_PROMPTS, _COLUMNS)]
    if found[0] is None or found[1] is None:
        raise DataError(
            f"{name} needs a column of prompts ({', '.join(_PROMPTS)}) and one of criteria ({', '.join(_COLUMNS)}); "
            f"it has {', '.join(table.column_names)}"
        )
    prompt, column = found[0], found[1]
    criteria: dict[str, tuple[Criterion, ...]] = {}
    rows: dict[str, int] = {}
    for row, given in enumerate(table.select_columns([prompt, column])):
        try:
            key = prompt_keys([read_prompt({"prompt": given[prompt]})])[0]
        except DataError as error:
            raise DataError(f"{name}: row {row}: {str(error).replace('prompt', prompt)}") from None
        try:
            read = read_criteria(given[column])
        except DataError as error:
            raise DataError(f"{name}: row {row}: {column} {error}") from None
        if criteria.setdefault(key, read) != read:
            raise DataError(
                f"{name}: row {row} has the same {prompt} as row {rows[key]}, but other {column}; keep one list"
            )
        rows.setdefault(key, row)
    return criteria


def saved_criteria(held: Any, where: str) -> ByPrompt:
    """Read what a source saved.

    Args:
        held: plain JSON values.
        where: they are from, in messages.

    Raises:
        ModelError: they are something else.
    """
    if not isinstance(held, dict):
        raise ModelError(f"{where} must hold an object of criteria by prompt, got a {type(held).__name__}")
    try:
        return {key: read_criteria(value) for key, value in held.items()}
    except DataError as error:
        raise ModelError(f"{where}: {error}") from None
