"""Check what a trainer is given before any model is loaded, so that a wrong argument is told at construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset

from surefoot.errors import ConfigError, DataError, VarianceError, nearest
from surefoot.hub_names import check_name
from surefoot.maths.objectives import Objective
from surefoot.rewards.source import RewardSource

__all__ = ["check_dataset", "check_model", "check_variance", "settings_of"]

Config = TypeVar("Config")


def settings_of(args: Any, wanted: type[Config], trainer: str) -> Config:
    """The trainer's settings: those given, or the defaults.

    Raises:
        ConfigError: they are of another class, such as TRL's own.
    """
    if args is None:
        return wanted()
    if not isinstance(args, wanted):
        raise ConfigError(
            f"args of {trainer} must be a {wanted.__name__}, got a {type(args).__name__}, which has no objective and "
            f"no weights; write surefoot.{wanted.__name__}(...), which takes the same settings and ours"
        )
    return args


def check_model(model: Any) -> None:
    """Refuse a model's name that is neither a path nor on the hub.

    Raises:
        ModelError: see `check_name`.
    """
    if isinstance(model, str):
        check_name(model, "model")


def check_dataset(dataset: Any, columns: Sequence[str], name: str = "train_dataset") -> None:
    """Refuse a dataset without rows, or without the columns that the trainer reads.

    Args:
        dataset: a dataset, streamed or not, several by name, or None where none is given.

    Raises:
        ConfigError: it is the name of one. DataError: it is empty, or lacks a column (the nearest one is named).
    """
    if dataset is None:
        return
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            check_dataset(part, columns, f"{name}['{key}']")
        return
    if isinstance(dataset, str):
        raise ConfigError(f"{name} must be a dataset, got the text '{dataset}'; load it with datasets.load_dataset")
    there = dataset.column_names if isinstance(dataset, Dataset) else list(next(iter(dataset), {}))
    for column in columns:
        if there and column not in there:
            near = nearest(column, there, likeness=0.5)
            hint = f"; rename '{near}': dataset.rename_column('{near}', '{column}')" if near else ""
            raise DataError(f"{name} has no column '{column}'; it has {', '.join(there)}{hint}")
    if next(iter(dataset), None) is None:
        raise DataError(f"{name} is empty")


def check_variance(source: RewardSource, objective: Objective, functions: Sequence[Any], preset: str) -> None:
    """Refuse an objective that needs a variance of a source that has none.

    Args:
        functions: reward functions beside the source, which have no variance.
        preset: the objective's name.

    Raises:
        VarianceError: what was given, and how a variance or an objective without one is had.
    """
    if not objective.needs_variance or source.num_members != 1:
        return
    without = "or choose an objective that needs no variance, such as preset='mean'"
    if len(functions) > 1 and source.name == "functions":
        raise VarianceError(
            f"preset '{preset}' needs a variance, and {len(functions)} reward functions can be two things: members, "
            f"which judge the same, so that their disagreement is the variance (give "
            f"surefoot.FunctionMembers.of({', '.join(map(_name, functions))})), or rewards that are added, as in TRL, "
            "and have none (preset='mean')"
        )
    if functions and source.name == "functions":
        raise VarianceError(
            f"preset '{preset}' needs a variance, and one function, {_name(functions[0])}, has none: give several "
            "members (surefoot.FunctionMembers.of(f, g, ...)), a function that gives mean and variance "
            f"(surefoot.FunctionReward), {without}"
        )
    raise VarianceError(
        f"preset '{preset}' needs a variance, and '{source.name}' has one member, which can't disagree: give two "
        f"reward models or more, a source of `surefoot reward` (--kind laplace makes a variance for one model), "
        f"{without}"
    )


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
