"""Open a dataset from a local file, a `save_to_disk` directory or a hub name."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, ReadInstruction, Value, load_dataset, load_from_disk

from surefoot.data.text_files import check_text_file
from surefoot.errors import DataError
from surefoot.hub_names import check_name

__all__ = ["open_dataset"]

_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_TEXTS = ("prompt", "chosen", "rejected", "completion")
_PART = re.compile(r"(?P<split>[^\[\]]+)(?P<rows>\[-?\d*%?:-?\d*%?\])")
"""A part of a split, as `load_dataset` writes it."""


def open_dataset(name: str | Path, *, split: str | None = None, config: str | None = None) -> Dataset:
    """Open one split of a dataset as a table.

    Args:
        name: a .parquet, .json, .jsonl or .csv file; a directory written by `save_to_disk` or holding such files; or
            a dataset's name on the hub.
        split: which split, or a part of it: `train[:500]`, `train[10%:20%]`, as in `load_dataset`. A plain file is
            one table, "train"; if it has a `split` column, rows are chosen by that.
        config: the hub dataset's configuration name.

    Raises:
        DataError: nothing is there, the kind of file is unknown, it isn't UTF-8 or holds numbers for texts, the split
            doesn't exist, or the table is empty.
    """
    part = _PART.fullmatch(split or "")
    split, rows = (split, None) if part is None else part.groups()
    path = Path(name)
    if path.is_file():
        table = _open_file(path)
        _refuse_numbers(table, path)
        if "split" not in table.column_names and split not in (None, "train"):
            raise DataError(f"{path} is one table without a column 'split', so it has no split '{split}'")
    elif path.is_dir():
        table = _open_directory(path, split)
    else:
        check_name(str(name), "dataset")
        if path.exists():
            raise DataError(f"dataset {name} is neither a file nor a directory")
        table = _load(str(name), split, config)
    table = _choose_rows(table, split, str(name))
    if rows is not None:
        (span,) = ReadInstruction.from_spec(f"all{rows}").to_absolute({"all": len(table)})
        table = table.select(range(span.from_, span.to))
    if len(table) == 0:
        raise DataError(f"dataset {name} is empty" + (f" (split '{split}{rows or ''}')" if split else ""))
    return table


def _open_file(path: Path) -> Dataset:
    if path.suffix not in _READERS:
        raise DataError(f"{path} is of an unknown kind; use {', '.join(sorted(_READERS))}")
    if path.stat().st_size == 0:
        raise DataError(f"dataset {path} is empty")
    if path.suffix != ".parquet":
        check_text_file(path)
    try:
        return load_dataset(_READERS[path.suffix], data_files=glob.escape(str(path)), split="train")
    except Exception as error:  # datasets raises many kinds for a broken file
        if "corresponds to no data" in str(error):
            raise DataError(f"dataset {path} is empty") from None
        raise DataError(f"can't read {path}: {_first_line(error.__cause__ or error)}") from error


def _refuse_numbers(table: Dataset, path: Path) -> None:
    if any(column.startswith("__index_level_") for column in table.column_names):
        raise DataError(f"{path}: rows have more fields than its first line names; quote texts that hold commas")
    for column in _TEXTS:
        kind = table.features.get(column)
        if isinstance(kind, Value) and kind.dtype not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{path}: column '{column}' holds {kind.dtype}, where text or messages belong")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _open_directory(path: Path, split: str | None) -> Dataset:
    if not ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        if glob.has_magic(str(path.resolve())):
            raise DataError(f"datasets reads *, ? and [ in {path.resolve()} as a pattern; rename the directory")
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix in _READERS.keys() - {".parquet"}:
                check_text_file(file)
        return _load(str(path), split, None)
    try:
        held = load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"can't read the dataset in {path}: {_first_line(error)}") from error
    return _one_split(held, split, str(path))


def _load(name: str, split: str | None, config: str | None) -> Dataset:
    try:
        held: Any = load_dataset(name, name=config)
    except Exception as error:
        raise DataError(f"can't load dataset '{name}': {_first_line(error)}") from error
    return _one_split(held, split, name)


def _one_split(held: Dataset | DatasetDict, split: str | None, name: str) -> Dataset:
    if isinstance(held, Dataset):
        return held
    wanted = split or "train"
    if wanted not in held:
        raise DataError(f"dataset {name} has no split '{wanted}'; it has {', '.join(held)}")
    return held[wanted]


def _choose_rows(table: Dataset, split: str | None, name: str) -> Dataset:
    if "split" not in table.column_names:
        return table
    values = table["split"]
    if split is None:
        return table
    rows = [i for i, value in enumerate(values) if value == split]
    if not rows:
        raise DataError(f"no row of {name} has split '{split}'; its column 'split' holds {sorted(set(values))}")
    return table.select(rows).remove_columns("split")
