"""Find the JSON objects in a reply, also those with a trailing comma, in Python's syntax, or cut off."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

__all__ = ["Objects", "find_objects"]

_KEYS = ("rating", "score")
"""Keys of a rating; "score" counts only where there is no "rating"."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)(\s*:)?', re.DOTALL)
_BEGINS = re.compile(r'\{\s*(?:["\'}]|\Z|(?:rating|score)\s*:)', re.IGNORECASE)
_NUMBER_TEXT = re.compile(r'"\s*[-+]?[\d./ ]+"')
_ENTRY = re.compile(r'"(\w+)"\s*:\s*("[^"]*"|[-+]?\d+(?:\.\d+)?)(?:\s*([,}])|\s+|(\Z))')
_UNQUOTED = re.compile(r"\{\s*(rating|score)\s*:\s*([-+]?\d+(?:\.\d+)?)\s*,?\s*\}", re.IGNORECASE)
_LONGEST = 20_000
"""Most characters of an object that is read as Python's syntax."""


class Objects(NamedTuple):
    """What a text's objects hold.

    Args:
        ratings: values of their keys "rating", or else "score", whatever their type.
        at_end: a number with which the text ends, so that it may have been cut; also among `ratings`.
        outside: the text without its objects.
        pairs: every key with its value, of all depths.
    """

    ratings: list[Any]
    at_end: str | None
    outside: str
    pairs: Sequence[tuple[str, Any]] = ()


Pairs = list[tuple[str, Any]]


def find_objects(text: str) -> Objects:
    """Every object of a text, with the ratings in it at any depth; those inside JSON strings don't count."""
    pairs: Pairs = []
    outside: list[str] = []
    at_end, place = None, 0
    while (start := text.find("{", place)) >= 0:
        parsed = _whole(text, start) or _odd(text, start)
        outside.append(text[place : start if parsed else start + 1])
        place = start + 1
        if parsed is not None:
            inside, place, at_end = parsed
            pairs += inside
    outside.append(text[place:])
    named = [[value for key, value in pairs if key.lower() == name] for name in _KEYS]
    return Objects(named[0] or named[1], at_end, "".join(outside), pairs)


Parsed = tuple[Pairs, int, str | None]
"""(pairs of all depths, where the object ends, a number at the text's end)."""


def _whole(text: str, start: int) -> Parsed | None:
    pairs: Pairs = []

    def keep(some: Pairs) -> dict[str, Any]:
        pairs.extend(some)
        return dict(some)

    try:
        _, end = json.JSONDecoder(object_pairs_hook=keep, strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return pairs, end, None


def _odd(text: str, start: int) -> Parsed | None:
    """Read an object that is almost JSON, or that the text's end cuts off; None if it is no object."""
    if not _BEGINS.match(text, start):
        return None
    end = _end(text, start)
    inside = text[start : end or len(text)]
    if end is not None and len(inside) <= _LONGEST:
        unquoted = _UNQUOTED.fullmatch(inside)
        if unquoted:
            return [(unquoted[1], float(unquoted[2]))], end, None
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the judge's Python, such as `7if`
            return list(_pairs(ast.literal_eval(inside))), end, None
    entries = list(_ENTRY.finditer(_STRING.sub(_without_text, inside)))
    ended = [entry[2] for entry in entries if entry[4] is not None and not entry[2].startswith('"')]
    return [(entry[1], _value(entry[2])) for entry in entries], end or len(text), ended[-1] if ended else None


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of all depths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _pairs(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _pairs(inner)


def _end(text: str, start: int) -> int | None:
    """Where the object that begins at `start` ends; None if the text ends before."""
    depth, place = 0, start
    while place < len(text):
        if text[place] == '"':
            place = _STRING.match(text, place).end(0)  # type: ignore[union-attr]
            continue
        depth += (text[place] in "{[") - (text[place] in "}]")
        place += 1
        if depth == 0:
            return place
    return None


def _without_text(string: re.Match[str]) -> str:
    """Empty a string unless it is a key or a number, so that its text can't be taken for a key."""
    return string[0] if string[1] or _NUMBER_TEXT.fullmatch(string[0]) else '""'


def _value(said: str) -> Any:
    return said.strip('"') if said.startswith('"') else float(said)
