"""Turn parsed JSON into frozen dataclasses, with an error that names the field that doesn't fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["Misfit", "decode"]

T = TypeVar("T")
Decoder = Callable[[Any], Any]


class Misfit(ValueError):
    """A value of a JSON document is missing or of the wrong kind.

    Args:
        path: where it stands, such as `trajectory[3].kl`.
        problem: "is missing" or "is no number".
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"'{path}' {problem}" if path else f"it {problem}")
        self.path, self.problem = path, problem

    def below(self, parent: str) -> Misfit:
        """The same misfit, seen from the object or list that holds the value."""
        join = "" if not self.path or self.path.startswith("[") else "."
        return Misfit(f"{parent}{join}{self.path}", self.problem)


def decode(kind: type[T], value: Any) -> T:
    """Build a dataclass from a JSON object; keys that it has no field for are ignored.

    Fields may be numbers, text, objects (`dict`), lists (`tuple[X, ...]`), other dataclasses, `X | None` and `Any`.
    A field with a default may be missing. Numbers keep their type, and a number counts as text, since YAML reads a
    name such as 400 as a number.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: float
    ...     y: float | None = None
    >>> decode(Point, {"x": 1.5, "colour": "red"})
    Point(x=1.5, y=None)

    Raises:
        Misfit: the first field that is missing or of the wrong kind.
    """
    decoder: Decoder = _decoder(cast(Any, kind))
    return decoder(value)


@cache
def _decoder(hint: Any) -> Decoder:
    if hint is Any:
        return lambda value: value
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_dataclass(hint):
        return _object_decoder(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (alternative,) = [each for each in inner if each is not NoneType]
        decode_known = _decoder(alternative)
        return lambda value: None if value is None else decode_known(value)
    if origin is tuple:
        return _list_decoder(_decoder(inner[0]))
    return _PLAIN[origin]


def _object_decoder(kind: Any) -> Decoder:
    hints = get_type_hints(kind)
    decoders = [(each.name, _decoder(hints[each.name]), _is_required(each)) for each in fields(kind)]

    def decode_object(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        values = {}
        for name, decode_field, required in decoders:
            try:
                if name in _mapping(value):
                    values[name] = decode_field(value[name])
                elif required:
                    raise Misfit("", "is missing")
            except Misfit as misfit:
                raise misfit.below(name) from None
        return kind(**values)

    return decode_object


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _list_decoder(decode_item: Decoder) -> Decoder:
    def decode_list(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise Misfit("", "is no list")
        items = []
        for place, item in enumerate(value):
            try:
                items.append(decode_item(item))
            except Misfit as misfit:
                raise misfit.below(f"[{place}]") from None
        return tuple(items)

    return decode_list


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misfit("", "is no object")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit("", "is no number")
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Misfit("", "is no whole number")
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit("", "is no text")
    return str(value)


_PLAIN: dict[Any, Decoder] = {float: _number, int: _whole_number, str: _text, dict: _mapping}
