"""Exceptions of surefoot; each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "ConfigError",
    "DataError",
    "ModelError",
    "RowError",
    "RunError",
    "SurefootError",
    "VarianceError",
    "did_you_mean",
    "naming_rows",
    "nearest",
]


class SurefootError(Exception):
    """Base of every error that surefoot raises on purpose.

    The command line prints the message alone; anything else that escapes is a bug and keeps its traceback.
    """


class ConfigError(SurefootError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(SurefootError, ValueError):
    """The data lack a column, have no usable row, or have a bad one (its number is in the message)."""


class RowError(DataError):
    """A row of a batch can't be read.

    Args:
        row: its place in the batch.
        problem: what is wrong with it.
        name: of the row in its file, if that is known.
    """

    def __init__(self, row: int, problem: str, name: str | None = None) -> None:
        super().__init__(f"{name or f'row {row}'}: {problem}")
        self.row, self.problem = row, problem


@contextmanager
def naming_rows(name: Callable[[int], str]) -> Iterator[None]:
    """Inside, give a `RowError` of a batch the name that its row has in the file."""
    try:
        yield
    except RowError as error:
        raise RowError(error.row, error.problem, name(error.row)) from error


class ModelError(SurefootError, ValueError):
    """A model or tokenizer can't be loaded, or can't do what is asked of it."""


class RunError(SurefootError, RuntimeError):
    """A run can't start or go on, such as an output directory that holds another run."""


class VarianceError(SurefootError, ValueError):
    """A variance is needed, but the source has none (a single member, say)."""


def nearest(name: str, names: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The name that is spelt most like `name`; None if none is.

    Args:
        likeness: how alike two names must be at least, from 0 (any) to 1 (equal), as of `difflib`.

    >>> nearest("vanila", ["mean", "vanilla"]), nearest("x", ["mean"])
    ('vanilla', None)
    """
    return next(iter(difflib.get_close_matches(name, list(names), 1, likeness)), None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or nothing.

    >>> did_you_mean("vanila", ["mean", "vanilla"])
    "; did you mean 'vanilla'?"
    """
    known = nearest(name, names)
    return "" if known is None else f"; did you mean '{known}'?"
