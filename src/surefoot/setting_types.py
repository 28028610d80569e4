"""Whether a value of a config file is of the type that a setting declares; argparse looks at words alone."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from surefoot.errors import ConfigError

__all__ = ["check_nested", "checked_kinds"]

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (put it in quotes)",
    dict: "`key: value` lines",
    list: "a list",
}


def checked_kinds(settings: Mapping[str, Any], declared: tuple[type, ...], where: str) -> dict[str, Any]:
    """The settings, a lone value standing for a list of one.

    Args:
        declared: dataclasses. A class's `YAML_KINDS` names types that a file may hold besides.

    Raises:
        ConfigError: the first value of another kind.
    """
    hints: dict[str, Any] = {name: hint for one in declared for name, hint in get_type_hints(one).items()}
    for one in declared:
        hints |= getattr(one, "YAML_KINDS", {})
    found = {}
    for name, value in settings.items():
        hint = hints.get(name, Any)
        found[name] = [value] if _wants_list(hint) and isinstance(value, str) else value
        if not _fits(found[name], hint):
            raise ConfigError(f"'{name}' in {where} must be {_wanted(hint)}, got {value!r:.60}")
    return found


def check_nested(settings: Mapping[str, Any], declared: tuple[type, ...], where: str) -> None:
    """Refuse a value of another type, in settings inside of others: no parser reads them as words.

    So text is no number there. 0 and 1 stand for false and true, and a lone text for a list of one, as TRL takes it.

    Args:
        declared: dataclasses. Where a default is None, so may a value be.
        where: the name of the settings that these are in, as in `policy`.

    Raises:
        ConfigError: the first value of another type.
    """
    hints = {name: hint for one in declared for name, hint in get_type_hints(one).items()}
    for name, value in settings.items():
        if value is None and any(getattr(one, name, MISSING) is None for one in declared):
            continue
        hint = hints.get(name, Any)
        if not any(_is_nested(value, kind) for kind in _alternatives(hint)):
            raise ConfigError(f"{where}.{name} must be {_wanted(hint)}, got {value!r:.60}")


def _is_nested(value: Any, kind: Any) -> bool:
    plain = get_origin(kind) or kind
    if isinstance(value, str):
        return plain not in (int, float, bool, dict, type(None))
    if type(value) is int and plain is bool:
        return value in (0, 1)
    return _is_of(list(value) if isinstance(value, tuple) else value, kind)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _wants_list(hint: Any) -> bool:
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    return bool(kinds) and all((get_origin(kind) or kind) is list for kind in kinds)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_of(value, kind) for kind in _alternatives(hint))


def _is_of(value: Any, kind: Any) -> bool:
    plain = get_origin(kind) or kind
    if kind is Any or (plain not in (*_WORDS, type(None), Literal) and not _is_enum(plain)):
        return True
    if plain is type(None):
        return value is None
    if plain is list:
        inner = get_args(kind)
        return isinstance(value, list) and (not inner or all(_fits_in_list(item, inner[0]) for item in value))
    if isinstance(value, str):  # argparse reads it as it would a word of the command line
        return True
    if plain is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return plain in (bool, dict) and isinstance(value, plain)


def _fits_in_list(value: Any, hint: Any) -> bool:
    """As `_fits`, but argparse doesn't read the words of a list that stands in a file."""
    numbers = set(_alternatives(hint)) <= {int, float, bool}
    return _fits(value, hint) and not (numbers and isinstance(value, str))


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _wanted(hint: Any) -> str:
    kinds = [get_origin(kind) or kind for kind in _alternatives(hint) if kind is not type(None)]
    words = list(dict.fromkeys(_WORDS.get(kind, "text (put it in quotes)") for kind in kinds))
    return " or ".join(words)
