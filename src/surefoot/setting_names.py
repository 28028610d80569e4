"""Older names of settings: commands, config files and the records of unfinished runs may still hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["OLDER_NAMES", "newer_names", "refuse_both_names"]

_SOURCES = {"source": "reward_source", "models": "reward_models"}
OLDER_NAMES: dict[str, dict[str, str]] = {
    "anchors": _SOURCES,
    "bon": {"gold_source": "gold"},
    "diagnose": {**_SOURCES, "dataset": "dataset_name", "split": "dataset_split"},
    "forecast": {"source": "reward_source"},
    "label": {"pairs": "dataset_name"},
    "score": {**_SOURCES, "split": "dataset_split"},
    "select": {"source": "reward_source"},
    "serve": {"source": "reward_source"},
    "study": {
        "batch": "per_device_train_batch_size",
        "accumulation": "gradient_accumulation_steps",
        "group": "num_generations",
        "completion_tokens": "max_completion_length",
        "checkpointing": "gradient_checkpointing",
    },
    "theory": {"out": "output_dir"},
}
"""By command: a setting's older name to its present one."""


def newer_names(command: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a command under their present names."""
    older = OLDER_NAMES.get(command, {})
    return {older.get(name, name): value for name, value in settings.items()}


def refuse_both_names(command: str, names: Iterable[str], where: str) -> None:
    """Raise ConfigError if one of the names is the older name of another."""
    given = set(names)
    for name, present in OLDER_NAMES.get(command, {}).items():
        if {name, present} <= given:
            raise ConfigError(f"{where} has '{present}' twice: '{name}' is its older name; give {present} alone")
