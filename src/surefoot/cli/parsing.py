"""Read settings into dataclasses as TRL does: `--config file.yaml` with `--key value` over it; unknown keys fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from surefoot.errors import ConfigError, SurefootError, did_you_mean
from surefoot.ranges import check_ranges
from surefoot.redaction import redacted
from surefoot.rewards.kinds.judge.access import JudgeArguments
from surefoot.setting_names import OLDER_NAMES, newer_names, refuse_both_names
from surefoot.setting_types import checked_kinds
from surefoot.yaml_files import parse_yaml, read_yaml

__all__ = ["build_parser", "given_settings", "parse"]


def build_parser(types: tuple[type, ...], command: str) -> Any:
    """An argparse parser with an option for each field of the dataclasses, and `--config`."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(list(types), prog=f"surefoot {command}", allow_abbrev=False)
    parser.add_argument("--config")
    parser.error = _refuse
    return parser


def parse(
    types: tuple[type, ...], arguments: list[str], command: str, *, unread: Collection[str] = ()
) -> tuple[Any, ...]:
    """Read one instance of each dataclass from the words of the command line and its `--config` file.

    Values on the command line win over the file, as in TRL. Anything TRL's own dataclasses accept is accepted, and so
    are the older names of settings (`surefoot.setting_names`). `JudgeArguments` among the types are put where saved
    judges look for them.

    Args:
        types: dataclasses whose field names together are the known keys.
        arguments: the words after `surefoot <command>`.
        command: shown in usage and errors.
        unread: settings that the file may hold for another command; they are left out.

    Returns:
        An instance of each of the types but `JudgeArguments`.

    Raises:
        ConfigError: an unknown key (the nearest known one is given), a missing required key, a value of the wrong kind
            or out of its range, or an unreadable file.
    """
    parser = build_parser(types, command)
    choices = _own_choices(parser, types)
    words, path = _split_config(arguments)
    words = _newer_words(command, words)
    known = {action.dest for action in parser._actions} | {f.name for t in types for f in dataclasses.fields(t)}
    settings = _read(path, command) if path is not None else {}
    settings = {name: value for name, value in settings.items() if name not in unread}
    for key in settings:
        _check(key, known - {"config", "help"}, str(path))  # words of the command line alone
    settings = checked_kinds(settings, types, str(path))
    for word in words:
        if word.startswith("--"):
            _check(word[2:].split("=", 1)[0].replace("-", "_"), known, "the command line")
    _check_choices(parser, settings, str(path))
    parser.set_defaults(**settings)
    for action in parser._actions:
        if action.dest in settings:
            action.required = False
    for action in parser._actions:
        if action.required and not any(w.split("=")[0] in action.option_strings for w in words):
            raise ConfigError(f"'{action.dest}' is missing; give it in the config file or as --{action.dest}")
    try:
        instances = parser.parse_args_into_dataclasses(words)[: len(types)]
    except SurefootError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"a setting is not usable: {' '.join(str(error).split())}") from error
    for instance in instances:
        _check_values(vars(instance), choices)
        if isinstance(instance, JudgeArguments):
            instance.publish()
    return tuple(instance for instance in instances if not isinstance(instance, JudgeArguments))


def _own_choices(parser: Any, types: tuple[type, ...]) -> dict[str, Any]:
    """Take the choices of our own settings out of the parser: our message on a wrong one names the nearest."""
    choices = {f.name: f.metadata["choices"] for t in types for f in dataclasses.fields(t) if "choices" in f.metadata}
    for action in parser._actions:
        if action.dest in choices:
            action.choices = None
    return choices


def _check_values(values: dict[str, Any], choices: dict[str, Any]) -> None:
    """Refuse numbers out of range, names that aren't among the choices, and text with a NUL."""
    check_ranges(values)
    for name, value in values.items():
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{name} holds a NUL character")
        if name in choices and value is not None and value not in choices[name]:
            hint = did_you_mean(str(value), choices[name])
            raise ConfigError(f"{name} must be one of {', '.join(choices[name])}, got '{value}'{hint}")


def _check_choices(parser: Any, settings: dict[str, Any], where: str) -> None:
    """Refuse a file's value that isn't among a setting's choices; argparse doesn't look at defaults for that."""
    for action in parser._actions:
        value = settings.get(action.dest)
        if action.choices and value is not None and str(value) not in map(str, action.choices):
            raise ConfigError(
                f"'{action.dest}' in {where} must be one of {', '.join(map(str, action.choices))}, got {value!r:.60}"
            )


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"a setting is not usable: {message}")


def given_settings(arguments: list[str], command: str = "") -> dict[str, Any]:
    """The settings in the config file and on the command line as plain values without secrets, for records.

    Args:
        command: whose older names are replaced by the present ones.
    """
    words, path = _split_config(arguments)
    settings = _read(path, command) if path is not None else {}
    key: str | None = None
    for word in _newer_words(command, words):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            key = key.replace("-", "_")
            settings[key] = _plain(value) if value else True
        elif key is not None:
            value = _plain(word)
            held = settings[key]
            settings[key] = value if held is True else [*(held if isinstance(held, list) else [held]), value]
    plain: dict[str, Any] = redacted(settings)
    return plain


def _plain(word: str) -> Any:
    """A word of the command line as YAML would read it; text where it is no YAML, as `[1].jsonl` isn't."""
    try:
        return parse_yaml(word, "the command line")
    except ConfigError:
        return word


def _newer_words(command: str, words: list[str]) -> list[str]:
    """The words with the present names of options that were given by their older ones."""
    older = {f"--{name}": f"--{present}" for name, present in OLDER_NAMES.get(command, {}).items()}
    given = [word.partition("=") for word in words]
    refuse_both_names(command, [option[2:] for option, _, _ in given if option.startswith("--")], "the command line")
    return [older.get(option, option) + sign + value for option, sign, value in given]


def _split_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    words, path = list(arguments), None
    for position, word in enumerate(words):
        if word == "--config":
            if position + 1 == len(words):
                raise ConfigError("--config needs the path of a YAML file")
            path = Path(words[position + 1])
            del words[position : position + 2]
            break
        if word.startswith("--config="):
            path = Path(word.partition("=")[2])
            del words[position]
            break
    if any(word.partition("=")[0] == "--config" for word in words):
        raise ConfigError("--config is given twice; give one file")
    return words, path


def _read(path: Path, command: str) -> dict[str, Any]:
    values = read_yaml(path, "config file")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"config file {path} must hold `key: value` lines, got {type(values).__name__}")
    refuse_both_names(command, values, str(path))
    return newer_names(command, values)


def _check(key: str, known: set[str], where: str) -> None:
    if key in known or (key.startswith("no_") and key[3:] in known):
        return
    raise ConfigError(f"unknown setting '{key}' in {where}{did_you_mean(key, known)}")
