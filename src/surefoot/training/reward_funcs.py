"""Read a trainer's `reward_funcs` argument, which may be a source, names of models, or functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.registry import load_source
from surefoot.rewards.saved import SOURCE
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.loading import check_templates
from surefoot.types import Text

__all__ = ["RewardFuncs", "split_reward_funcs"]

RewardFuncs = RewardSource | str | Path | list[Any]
"""A source; the directory of one; a reward model's name, or several, the members; or a list of one source and plain
functions, or of plain functions alone."""


def split_reward_funcs(reward_funcs: RewardFuncs, dataset: Any = None) -> tuple[RewardSource, list[Any]]:
    """Split `reward_funcs` into one reward source and TRL's own kinds of reward function.

    If the dataset's prompts are messages, whether the reward models can read them is checked before any is loaded.

    - Names of reward models become the members of one source, each with its own tokenizer and chat template.
    - Plain functions beside a source are added to its reward and have no variance.
    - Plain functions alone are TRL's sum of rewards: there is no variance, so only presets without weighting run.

    Raises:
        ModelError: a reward model can't read the dataset's prompts, or can't be loaded.
        TypeError: several sources, sources and names together, or nothing.
    """
    given = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    prompt = _first_prompt(dataset)
    check_templates([item for item in given if isinstance(item, str | Path)], prompt)
    given = [_loaded(item) for item in given]
    sources = [item for item in given if isinstance(item, RewardSource)]
    names = [item for item in given if isinstance(item, str | Path)]
    functions = [item for item in given if not isinstance(item, RewardSource | str | Path)]
    if len(sources) > 1 or (sources and names) or not given or not all(callable(item) for item in functions):
        raise TypeError(
            f"reward_funcs must hold one RewardSource, or names of reward models, or functions; got {len(sources)} "
            f"sources, {len(names)} names and {len(functions)} others. Load a source with "
            "surefoot.load_source(directory), or wrap your function in surefoot.FunctionMembers"
        )
    if names:
        from surefoot.rewards.kinds.independent.source import IndependentMembers

        return IndependentMembers.from_models(names), functions
    if sources:
        sources[0].check_reads(prompt)
    return (sources[0] if sources else FunctionMembers(_nothing, 1, "functions")), functions


def _first_prompt(dataset: Any) -> Text:
    """First prompt of a map-style or streamed dataset; empty text if there is no dataset."""
    row: dict[str, Any] = next(iter(dataset), {}) if dataset is not None else {}
    prompt: Text = row.get("prompt", "")
    return prompt


def _loaded(item: Any) -> Any:
    return load_source(item) if isinstance(item, str | Path) and (Path(item) / SOURCE).exists() else item


def _nothing(prompts: Any, completions: Any) -> torch.Tensor:
    return torch.zeros(len(prompts), 1)
