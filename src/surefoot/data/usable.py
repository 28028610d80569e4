"""Check a table's columns, and refuse or leave out its bad rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from datasets import Dataset

from surefoot.errors import DataError, nearest

__all__ = ["BadRows", "keep_usable", "require_columns"]

BadRows = Literal["error", "drop"]
_SHOWN_ROWS = 5


def keep_usable(
    table: Dataset, bad: dict[int, str], name: str, bad_rows: BadRows | None, numbers: Sequence[int] | None = None
) -> Dataset:
    """Leave out a table's bad rows with a warning that counts them, or raise an error that names them.

    Args:
        bad: row to what is wrong with it.
        bad_rows: None where there is no such setting: an error then.
        numbers: each row's number in the file, where rows have been left out before.

    Raises:
        DataError: rows are bad and `bad_rows` isn't "drop", or none is left.
    """
    if not bad:
        return table
    place = range(len(table)) if numbers is None else numbers
    if bad_rows != "drop":
        shown = "; ".join(f"row {place[row]}: {what}" for row, what in list(bad.items())[:_SHOWN_ROWS])
        more = f"; and {len(bad) - _SHOWN_ROWS} more" if len(bad) > _SHOWN_ROWS else ""
        advice = "mend or remove them" if bad_rows is None else "mend them, or set bad_rows: drop"
        raise DataError(f"{name} has {len(bad)} unusable rows ({shown}{more}); {advice}")
    if len(bad) == len(table):
        raise DataError(f"no row of {name} is usable; the first: {next(iter(bad.values()))}")
    listed = ", ".join(str(place[row]) for row in list(bad)[:_SHOWN_ROWS]) + (", …" if len(bad) > _SHOWN_ROWS else "")
    warnings.warn(f"{name}: {len(bad)} of {len(table)} rows left out (rows {listed})", stacklevel=3)
    return table.select([row for row in range(len(table)) if row not in bad])


def require_columns(table: Dataset, columns: tuple[str, ...], name: str) -> None:
    """Raise DataError for the first column that is missing, with the nearest one that is there."""
    for column in columns:
        if column not in table.column_names:
            near = nearest(column, table.column_names, likeness=0.5)
            hint = f"; did you mean to rename '{near}'?" if near else ""
            raise DataError(f"{name} has no column '{column}'; it has {', '.join(table.column_names)}{hint}")
