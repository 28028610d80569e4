"""Load reference answers, one for each prompt."""

from __future__ import annotations

from surefoot.data.rows import read_completion
from surefoot.errors import DataError
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.types import Text

__all__ = ["load_references"]


def load_references(name: str) -> dict[str, Text]:
    """Read `prompt` and `reference` (or `completion`, or `chosen`) of every row of a file or hub dataset.

    Returns:
        Answers under `prompt_keys`.

    Raises:
        DataError: a column is missing, a value is None, or a prompt has two different answers.
    """
    from surefoot.data.loading import open_dataset

    table = open_dataset(name)
    column = next((key for key in ("reference", "completion", "chosen") if key in table.column_names), None)
    if column is None or "prompt" not in table.column_names:
        raise DataError(f"{name} needs columns prompt and reference; it has {', '.join(table.column_names)}")
    answers: dict[str, Text] = {}
    for row, given in enumerate(table.select_columns(["prompt", column])):
        try:
            prompt, answer = read_completion({"prompt": given["prompt"], "completion": given[column]})
        except DataError as error:
            raise DataError(f"{name}: row {row}: {str(error).replace('completion', column)}") from None
        key = prompt_keys([prompt])[0]
        if answers.setdefault(key, answer) != answer:
            raise DataError(f"{name}: row {row} has a second, different reference answer to its prompt; keep one")
    return answers
