"""`--help` and shell completion of every command, from `options.json`, so that neither imports torch or TRL."""

from __future__ import annotations

import argparse
import json
from functools import lru_cache
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from surefoot.cli.examples import EXAMPLES

__all__ = ["ACTIONS", "DESCRIPTION", "OTHERS", "add_options", "help_text"]

DESCRIPTION = Path(__file__).with_name("options.json")
"""Written by `python -m surefoot.cli.describe`."""
OTHERS = (
    *("demo", "reward", "score", "anchors", "judge", "serve", "diagnose", "forecast"),
    *("select", "label", "online", "study", "world", "theory", "rloo", "grpo", "dpo", "bon"),
)
"""Commands whose options are the fields of dataclasses; `report`, `doctor`, `verl` and `openrlhf` have a light one."""

ACTIONS: dict[str, dict[str, str]] = {"judge": {"try": "ask it about a few completions and show everything"}}
"""Words of which one follows a command's name, and what they do."""
_KIND = "kind: "
_CONFIG = "YAML file of the settings below, required ones too; the command line wins over it"


@lru_cache(maxsize=1)
def _described() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    return held


def help_text(command: str, about: str, words: list[str]) -> str:
    """The help of a command.

    Args:
        about: what it does, in a line.
        words: the command line; of `reward` with `--kind` only that kind's settings are shown.
    """
    parser = argparse.ArgumentParser(
        prog=f"surefoot {command}",
        description=about[0].upper() + about[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(command),
    )
    if command in OTHERS:
        parser.usage = _usage(command)
    add_options(parser, command, _kind(words) if command == "reward" else None)
    return parser.format_help()


def add_options(parser: argparse.ArgumentParser, command: str, kind: str | None = None) -> None:
    """Add the options of a command to a parser for help or completion.

    Args:
        kind: of `reward`: leave the settings of the other kinds out.
    """
    if command not in OTHERS:
        import_module(f"surefoot.cli.{command}").add_options(parser)
        return
    if command in ACTIONS:
        told = "; ".join(f"{action}: {what}" for action, what in ACTIONS[command].items())
        parser.add_argument("action", choices=tuple(ACTIONS[command]), help=told)
    parser.add_argument("--config", metavar="FILE", help=_CONFIG)
    for title, options in _groups(command, kind).items():
        group = parser.add_argument_group(title)
        for option in options:
            words = {name: value for name, value in option.items() if name != "flags"}
            group.add_argument(*option["flags"], **words | {"help": option["help"].replace("%", "%%")})


def _groups(command: str, kind: str | None) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = _described()["commands"][command]
    kinds = {name.removeprefix(_KIND): options for name, options in groups.items() if name.startswith(_KIND)}
    groups = {name: options for name, options in groups.items() if not name.startswith(_KIND)}
    if not kinds:
        return groups
    if kind is None:
        return {**groups, "settings of some kinds (those of one: add --kind NAME)": _of_all_kinds(kinds)}
    if kind not in kinds:  # a kind of another package, or one without settings
        from surefoot.cli.describe import describe_kind

        kinds[kind] = describe_kind(kind)
    return {**groups, f"{_KIND}{kind}": kinds[kind]}


def _of_all_kinds(kinds: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each kind's settings once, with the kinds that have them; what they mean is told as for the first."""
    owners: dict[str, list[str]] = {}
    first: dict[str, dict[str, Any]] = {}
    for kind, options in kinds.items():
        for option in options:
            owners.setdefault(option["flags"][0], []).append(kind)
            first.setdefault(option["flags"][0], option)
    return [
        option | {"help": f"[{', '.join(owners[flag])}] {option['help']}"} for flag, option in sorted(first.items())
    ]


def _kind(words: list[str]) -> str | None:
    given = [word.partition("=")[2] for word in words if word.startswith("--kind=")]
    given += [after for word, after in pairwise(words) if word == "--kind"]
    return given[-1] if given else None


def _usage(command: str) -> str:
    options = [option for group in _described()["commands"][command].values() for option in group]
    required = [f"{option['flags'][0]} …" for option in options if option["help"].endswith("(required)")]
    actions = ["{" + ",".join(ACTIONS[command]) + "}"] if command in ACTIONS else []
    return " ".join(["surefoot", command, *actions, "[--config FILE]", *required, "[options]"])


def _epilog(command: str) -> str:
    lines = [f"  {line}" for line in EXAMPLES.get(command, ())]
    told = (
        ["examples (with the files of `surefoot world --output_dir world`, and of earlier commands):", *lines]
        if lines
        else []
    )
    if command in OTHERS and any("TRL" in title for title in _described()["commands"][command]):
        told += [*([""] if told else []), *_of_other_versions()]
    return "\n".join(told)


def _of_other_versions() -> list[str]:
    """A note where the installed packages aren't those that the description was made with."""
    known = _described()["versions"]
    here = {name: metadata.version(name) for name in known}
    there = " and ".join(f"{name} {version}" for name, version in known.items())
    return [] if here == known else [f"TRL's options are listed as of {there}; those of your versions are accepted."]
