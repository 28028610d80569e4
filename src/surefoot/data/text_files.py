"""What is looked at in a data file before a library reads it: its encoding, and how deeply its JSON is nested."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from surefoot.errors import DataError

__all__ = ["check_text_file"]

_DEEPEST = 60
"""Lists and objects inside of each other; pyarrow can hold about 64 and crashes on 20,000."""
_CHUNK = 1 << 24
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_STRING = re.compile(rb'"[^"]*"?')
_NULL_ROW = re.compile(rb"^[ \t\r]*null[ \t\r]*$", re.MULTILINE)


def check_text_file(path: Path) -> None:
    """Refuse a CSV, JSON or JSON lines file that is not UTF-8, or whose JSON is nested too deeply or has a null row.

    Raises:
        DataError: what is wrong, and at which byte.
    """
    place, open_ones, is_list = 0, b"", False
    for lines in _chunks(path):
        _check_utf8(lines, path, place)
        if path.suffix != ".csv":
            bare = lines.removeprefix(codecs.BOM_UTF8) if place == 0 else lines
            is_list = bare.lstrip().startswith(b"[") if place == 0 else is_list
            if not is_list and _NULL_ROW.search(bare):  # pyarrow crashes where a part that it reads begins with one
                raise DataError(f"{path} has a line that is null, where an object belongs; remove it")
            open_ones = _still_open(open_ones + _structure(lines), path)
        place += len(lines)


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time."""
    with path.open("rb") as file:
        while lines := file.readlines(_CHUNK):
            yield b"".join(lines)


def _check_utf8(lines: bytes, path: Path, place: int) -> None:
    try:
        lines.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {place + error.start}); save it as UTF-8"
        ) from None
    if b"\0" in lines:
        raise DataError(f"{path} holds a NUL (byte {place + lines.index(0)}), as UTF-16 does; save it as UTF-8")


def _structure(lines: bytes) -> bytes:
    """Brackets and braces outside of strings."""
    bare = lines.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    return _STRING.sub(b"", bare)


def _still_open(structure: bytes, path: Path) -> bytes:
    """What is left when all that is closed is taken away, from the inside out.

    Raises:
        DataError: the nesting is too deep.
    """
    for _ in range(_DEEPEST):
        before = len(structure)
        structure = structure.replace(b"[]", b"").replace(b"{}", b"")
        if len(structure) == before:
            break
    if len(structure) > _DEEPEST:
        raise DataError(f"{path} is nested deeper than {_DEEPEST} lists and objects, or closes none of them")
    return structure
