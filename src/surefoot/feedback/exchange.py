"""Write answers to a file of another format, and read them from one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from surefoot.data.loading import open_dataset
from surefoot.errors import ConfigError, DataError
from surefoot.feedback.answers import Answer
from surefoot.feedback.formats import FORMATS
from surefoot.feedback.pairs import Pair
from surefoot.files import read_json, whole_file, write_json, write_text

__all__ = ["export_answers", "import_answers"]

_ONE_DOCUMENT = ("label_studio", "argilla")


def export_answers(
    path: str | Path, pairs: Sequence[Pair], answers: Sequence[Answer], format: str, **settings: Any
) -> int:
    """Write answers as "trl" or "plain" (.jsonl or .parquet), "label_studio" or "argilla" (.json).

    Args:
        settings: of the format's own function in `formats.py`.

    Returns:
        Number of rows that were written.

    Raises:
        ConfigError: the file's ending doesn't fit the format. DataError: there is nothing to write.
    """
    target = check_name(path, format)
    rows = FORMATS[format][0](pairs, answers, **settings)
    if target.suffix == ".json":
        write_json(target, rows)
    elif not rows:
        raise DataError(f"there are no answers that {format} can hold; label some pairs first")
    elif target.suffix == ".jsonl":
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        with whole_file(target) as temporary:
            Dataset.from_list(rows).to_parquet(temporary)
    return len(rows)


def import_answers(path: str | Path, pairs: Sequence[Pair], format: str) -> list[Answer]:
    """Read answers that `export_answers` wrote, or that another tool gave.

    Raises:
        ConfigError: the file's ending doesn't fit the format. DataError: a row can't be read, or is of another pair.
    """
    target = check_name(path, format)
    rows: Any = read_json(target) if target.suffix == ".json" else open_dataset(target)
    if not isinstance(rows, list | Dataset):
        raise DataError(f"{target} holds {type(rows).__name__}, where a list belongs")
    try:
        return FORMATS[format][1](rows, pairs)
    except DataError as error:
        raise DataError(f"{target}: {error}") from None


def check_name(path: str | Path, format: str) -> Path:
    """The path, if its ending fits the format."""
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got '{format}'")
    endings = (".json",) if format in _ONE_DOCUMENT else (".jsonl", ".parquet")
    target = Path(path)
    if target.suffix not in endings:
        raise ConfigError(f"a file of format {format} ends in {' or '.join(endings)}, got {target.name}")
    return target
