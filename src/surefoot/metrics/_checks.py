"""Checks shared by the metrics: shapes, flags and unknown rows; errors name the field and the row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import DataError
from surefoot.metrics.intervals import Floats

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

TIE = 1e-12
"""Numbers this close (relative to the largest) are tied: σ(m) and 1 − σ(−m) differ by rounding alone."""


def group_index(groups: ArrayLike, known: Booleans) -> Integers:
    """Number the groups of the known rows 0, 1, …"""
    labels = np.asarray(groups)
    if labels.shape != known.shape:
        raise DataError(
            f"groups has shape {labels.shape}, but there are {len(known)} values; give one group per value"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise DataError(f"groups is NaN in row {int(np.argmax(np.isnan(labels)))}; every row needs a group")
    return np.unique(labels[known], return_inverse=True)[1]


def one_row(name: str, values: ArrayLike) -> Floats:
    """The values as an array of one dimension."""
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1:
        raise DataError(f"{name} has shape {row.shape}; give one dimension, one number per row")
    return row


def table(name: str, values: ArrayLike) -> Floats:
    """The values as (pairs, members), without the pairs that hold a NaN."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"{name} has shape {rows.shape}; give (pairs, members) with at least one member")
    return rows[~np.isnan(rows).any(axis=1)]


def same_length(**named: Floats) -> None:
    """Refuse arrays of different lengths."""
    lengths = {name: len(values) for name, values in named.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the rows must match, but the lengths are {lengths}")


def known_rows(**named: ArrayLike) -> list[Floats]:
    """The arrays, each without the rows in which any of them is NaN."""
    rows = {name: one_row(name, values) for name, values in named.items()}
    same_length(**rows)
    known = ~np.any([np.isnan(values) for values in rows.values()], axis=0)
    return [values[known] for values in rows.values()]


def probabilities(p: ArrayLike) -> Floats:
    """The values that are known, all of them in [0, 1]."""
    given = one_row("p", p)
    outside = (given < 0) | (given > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(f"p in row {row} is {given[row]}, which is no probability; choice_probabilities makes them")
    return given[~np.isnan(given)]


def flags(name: str, values: Floats) -> Booleans:
    """The values as booleans; only 0 and 1 are allowed."""
    other = (values != 0) & (values != 1)
    if other.any():
        raise DataError(f"{name} holds {values[other][0]}; give booleans, or NaN where unknown")
    return values == 1


def refuse_infinite(**named: Floats) -> None:
    """Refuse infinite values."""
    for name, values in named.items():
        infinite = np.isinf(values)
        if infinite.any():
            row = int(np.argmax(infinite))
            raise DataError(f"{name} in row {row} is {values[row]}; give NaN where it is unknown")


def nulls(values: dict[str, float]) -> dict[str, float | None]:
    """The values with None in place of NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def levels_of(rising: Floats, tolerance: float) -> Integers:
    """Number sorted values by level 0, 1, 2 …; a level ends at a gap larger than the tolerance."""
    return np.concatenate([np.zeros(min(1, len(rising)), np.int64), np.cumsum(np.diff(rising) > tolerance)])
