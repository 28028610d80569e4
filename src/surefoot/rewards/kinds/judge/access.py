"""Endpoint, key and cache of a saved judge, which its caller gives and its files never do.

A directory that somebody else made could otherwise send any environment variable to any host, together with the
prompts, and write a file anywhere. So `source.json` keeps the judge's model, rubric and how it is asked; the rest
comes from `load_source(directory, judge=...)`, from the settings of a command, or from the environment. The same holds
for the code that a saved source of `kind: criteria` may run (`verifiers`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.judge.call_config import OPENAI
from surefoot.yaml_files import read_yaml

__all__ = ["VARIABLES", "VERIFIERS", "JudgeAccess", "JudgeArguments", "access_of", "given", "verifiers_of"]

_NAMES = ("judge_endpoint", "judge_key_variable", "judge_cache", "judge_verifiers", "judges")
VARIABLES = {name: f"SUREFOOT_{name.upper()}" for name in _NAMES}
"""Environment variable of each setting of `JudgeArguments`; worker processes have them from the command."""
VERIFIERS = ("functions", "patterns", "run_code", "code_seconds", "code_memory_mib")
"""Settings of `kind: criteria` that let criteria run something."""


@dataclass(frozen=True)
class JudgeAccess:
    """How to reach one judge.

    Args:
        endpoint, key_variable, cache: as in `CallConfig`.
        verifiers: what a source of `kind: criteria` may run: those of its settings that are in `VERIFIERS`.
    """

    endpoint: str = OPENAI
    key_variable: str | None = None
    cache: str | None = None
    verifiers: Mapping[str, Any] | None = None

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> JudgeAccess | None:
        """Access from the settings of `surefoot reward` with `kind: judge` or `criteria`; None for another kind."""
        if settings.get("kind") not in ("judge", "criteria"):
            return None
        verifiers = {name: settings[name] for name in VERIFIERS if settings.get(name)}
        return cls(
            settings.get("endpoint") or OPENAI, settings.get("key_variable"), settings.get("cache"), verifiers or None
        )

    @property
    def of_calls(self) -> dict[str, Any]:
        """Endpoint, key variable and cache, as settings of `CallConfig`."""
        return {"endpoint": self.endpoint, "key_variable": self.key_variable, "cache": self.cache}

    @property
    def arguments(self) -> JudgeArguments:
        """The same as settings of a command."""
        verifiers = json.dumps(dict(self.verifiers)) if self.verifiers else None
        return JudgeArguments(self.endpoint, self.key_variable, self.cache, verifiers)


@dataclass
class JudgeArguments:
    """Settings of commands that load sources: endpoint, key and cache of saved judges (docs/judge.md)."""

    judge_endpoint: str | None = field(
        default=None, metadata={"help": "Of a saved judge: address of the OpenAI-compatible server to ask."}
    )
    judge_key_variable: str | None = field(
        default=None, metadata={"help": "Of a saved judge: environment variable that holds the server's key."}
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": "Of a saved judge: SQLite file of replies; the user's if none."}
    )
    judge_verifiers: str | None = field(
        default=None,
        metadata={
            "help": "Of a saved source of kind criteria, what it may run: YAML file of functions, patterns, run_code "
            "(the config that it was made with, say)."
        },
    )
    judges: str | None = field(
        default=None,
        metadata={"help": "For several judges: YAML file of `model: {endpoint: …, key_variable: …, cache: …}`."},
    )

    def publish(self) -> None:
        """Put what was given into the environment, where this process and its workers look for it."""
        for name, variable in VARIABLES.items():
            if getattr(self, name) is not None:
                os.environ[variable] = str(getattr(self, name))


_GIVEN: ContextVar[JudgeAccess | Mapping[str, JudgeAccess] | None] = ContextVar("judge", default=None)


@contextmanager
def given(judge: JudgeAccess | Mapping[str, JudgeAccess] | None) -> Iterator[None]:
    """Within this context, load judges with this access, also as parts of other sources; None changes nothing."""
    if judge is None:
        yield
        return
    token = _GIVEN.set(judge)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def access_of(model: str, directory: str | Path) -> JudgeAccess:
    """Find a judge's access: from `given`, else from the file of several judges, else from the environment.

    Args:
        model: the judge's name at its endpoint.
        directory: of the saved judge; in the error.

    Raises:
        ConfigError: nobody says where to ask it.
    """
    found = _named(model)
    if found is not None:
        return found
    endpoint = os.environ.get(VARIABLES["judge_endpoint"])
    if endpoint:
        key, cache = (os.environ.get(VARIABLES[name]) or None for name in ("judge_key_variable", "judge_cache"))
        return JudgeAccess(endpoint, key, cache, verifiers_of(model))
    raise ConfigError(
        f"{directory} is a judge, '{model}', and its files don't decide where your prompts and key go: give "
        "--judge_endpoint URL (and --judge_key_variable NAME, --judge_cache FILE), set SUREFOOT_JUDGE_ENDPOINT (and "
        "SUREFOOT_JUDGE_KEY_VARIABLE, SUREFOOT_JUDGE_CACHE), or in Python "
        "load_source(directory, judge=JudgeAccess(endpoint=..., key_variable=...)); several judges: --judges FILE"
    )


def verifiers_of(model: str) -> Mapping[str, Any]:
    """What a saved source of `kind: criteria` may run, found as its access is; nothing if nobody says.

    Raises:
        ConfigError: the file that is named can't be read.
    """
    found = _named(model)
    if found is not None:
        return found.verifiers or {}
    text = os.environ.get(VARIABLES["judge_verifiers"])
    if not text:
        return {}
    if text.lstrip().startswith("{"):  # as `JudgeAccess.arguments` puts it
        values = json.loads(text)
    else:
        values = read_yaml(Path(text), "file of verifiers")
    if not isinstance(values, dict):
        raise ConfigError(f"judge_verifiers: {text} must hold `functions:`, `patterns:` or `run_code:` lines")
    return {name: values[name] for name in VERIFIERS if name in values}


def _named(model: str) -> JudgeAccess | None:
    """The access that `given` or the file of several judges names."""
    judge = _GIVEN.get()
    if isinstance(judge, JudgeAccess):
        return judge
    return (dict(judge or {}) | ({} if judge else _in_file(os.environ.get(VARIABLES["judges"])))).get(model)


def _in_file(path: str | None) -> dict[str, JudgeAccess]:
    if not path:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"judges: can't read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"judges: {path} is not valid YAML: {error}") from None
    known = {field.name for field in fields(JudgeAccess)}
    if not isinstance(values, dict) or not all(
        isinstance(value, dict) and "endpoint" in value and set(value) <= known for value in values.values()
    ):
        raise ConfigError(f"judges: {path} must hold `model: {{endpoint: …, key_variable: …, cache: …}}` lines")
    return {str(model): JudgeAccess(**value) for model, value in values.items()}
