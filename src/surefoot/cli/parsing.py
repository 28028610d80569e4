"""Read settings into dataclasses as TRL does: `--config file.yaml` with `--key value` over it; unknown keys fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NoReturn

from surefoot.errors import ConfigError, SurefootError, did_you_mean
from surefoot.ranges import check_ranges
from surefoot.redaction import redacted
from surefoot.rewards.kinds.judge.access import JudgeArguments
from surefoot.setting_types import checked_kinds
from surefoot.yaml_files import parse_yaml, read_yaml

__all__ = ["given_settings", "parse"]


def parse(types: tuple[type, ...], arguments: list[str], command: str, *, judges: bool = False) -> tuple[Any, ...]:
    """Read one instance of each dataclass from the words of the command line and its `--config` file.

    Values on the command line win over the file, as in TRL. Anything TRL's own dataclasses accept is accepted.

    Args:
        types: dataclasses whose field names together are the known keys.
        arguments: the words after `surefoot <command>`.
        command: shown in usage and errors.
        judges: also read `JudgeArguments`, and put them where saved judges look for them.

    Raises:
        ConfigError: an unknown key (the nearest known one is given), a missing required key, a value of the wrong kind
            or out of its range, or an unreadable file.
    """
    from transformers import HfArgumentParser

    ours = len(types)
    types = (*types, JudgeArguments) if judges else types
    parser = HfArgumentParser(list(types), prog=f"surefoot {command}", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of the settings below; the command line wins over it")
    parser.error = _refuse
    words, path = _split_config(arguments)
    if any(word in ("-h", "--help") for word in words):
        parser.print_help()
        raise SystemExit(0)
    known = {action.dest for action in parser._actions} | {f.name for t in types for f in dataclasses.fields(t)}
    settings = _read(path) if path is not None else {}
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
        check_ranges(vars(instance))
        for name, value in vars(instance).items():
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"{name} holds a NUL character")
    if judges:
        instances[ours].publish()
    return tuple(instances[:ours])


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


def given_settings(arguments: list[str]) -> dict[str, Any]:
    """The settings in the config file and on the command line as plain values without secrets, for records."""
    words, path = _split_config(arguments)
    settings = dict(_read(path)) if path is not None else {}
    key: str | None = None
    for word in words:
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


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "config file")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"config file {path} must hold `key: value` lines, got {type(values).__name__}")
    return values


def _check(key: str, known: set[str], where: str) -> None:
    if key in known or (key.startswith("no_") and key[3:] in known):
        return
    raise ConfigError(f"unknown setting '{key}' in {where}{did_you_mean(key, known)}")
