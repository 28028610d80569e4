"""Run a command again under accelerate if `--accelerate_config` is given, as TRL's commands do."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

from surefoot.errors import ConfigError, RunError

__all__ = ["launch_command", "launched"]

_OPTION = "--accelerate_config"


def launched(command: str, arguments: list[str]) -> bool:
    """Whether `--accelerate_config` was given, in which case the command has been run under accelerate.

    Raises:
        ConfigError: the value is missing, or neither a file nor one of TRL's configs.
        RunError: accelerate failed.
    """
    words = launch_command(command, arguments)
    if words is None:
        return False
    code = subprocess.run(words, env=os.environ | {"ACCELERATE_LAUNCHED": "1"}).returncode
    if code:
        raise RunError(f"accelerate launch failed with exit status {code}; see the messages above")
    return True


def launch_command(command: str, arguments: list[str]) -> list[str] | None:
    """The words that run `surefoot command` under accelerate, or None without `--accelerate_config`."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{_OPTION}=") else [word])]
    if _OPTION not in words:
        return None
    place = words.index(_OPTION)
    if place + 1 == len(words):
        raise ConfigError(f"{_OPTION} needs a file, or the name of one of TRL's configs ({', '.join(_known())})")
    path = _resolve(words[place + 1])
    rest = words[:place] + words[place + 2 :]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
    return [*launcher, "-m", "surefoot.cli.main", command, *rest]


def _resolve(name: str) -> str:
    if Path(name).is_file():
        return name
    if name not in _known():
        raise ConfigError(f"{_OPTION} '{name}' is neither a file nor one of TRL's configs ({', '.join(_known())})")
    return str(resources.files("trl.accelerate_configs").joinpath(f"{name}.yaml"))


def _known() -> list[str]:
    folder = resources.files("trl.accelerate_configs")
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
