"""What a trainer is given as its reward, in TRL's way of giving it."""

from __future__ import annotations

from typing import Any

from surefoot.rewards.source import RewardSource

__all__ = ["split_reward_funcs"]


def split_reward_funcs(reward_funcs: RewardSource | list[Any]) -> tuple[RewardSource, list[Any]]:
    """The one reward source, and TRL's own kinds of reward function beside it.

    Raises:
        TypeError: none or several sources.
    """
    given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    sources = [item for item in given if isinstance(item, RewardSource)]
    if len(sources) != 1:
        raise TypeError(
            f"reward_funcs must hold exactly one RewardSource, got {len(sources)}; load one with "
            "surefoot.load_source(directory), or wrap your function in surefoot.FunctionMembers"
        )
    return sources[0], [item for item in given if not isinstance(item, RewardSource)]
