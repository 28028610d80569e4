"""Objectives of a forecast by name, as far as a source can serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surefoot.errors import ConfigError
from surefoot.maths.objectives import Objective, preset
from surefoot.types import RewardEstimate

__all__ = ["named_objectives", "served_by"]

_MEMBERLESS = ("vanilla", "variance_aware", "lcb:1", "lcb:2", "lcb:5", "uwo", "variance_aware_lcb:1",
               "variance_aware_lcb:2", "variance_aware_lcb:5", "literal")  # fmt: skip
_OF_MEMBERS = ("mean", "wco", "cvar", "kl_robust", "brme")


def has_members(estimate: RewardEstimate) -> bool:
    return estimate.members is not None and estimate.members.shape[1] > 1


def served_by(objective: Objective, estimate: RewardEstimate) -> Objective:
    """The objective with the mean in place of "one member", where a source has no members."""
    return (
        replace(objective, aggregate="mean")
        if objective.aggregate == "one" and not has_members(estimate)
        else objective
    )


def named_objectives(estimate: RewardEstimate, names: Sequence[str] | None) -> dict[str, Objective]:
    """Objectives by name; None takes all that the source can serve, the simplest first.

    Args:
        names: presets, with a parameter after a colon.

    >>> named_objectives(RewardEstimate(torch.zeros(1)), ["lcb:2"])["lcb:2"].parameter
    2.0
    """
    members = has_members(estimate)
    if names is None:
        usual = _MEMBERLESS[:1] + (_OF_MEMBERS[:1] if members else ()) + _MEMBERLESS[1:]
        names = usual + (_OF_MEMBERS[1:] if members else ()) if estimate.has_variance else _MEMBERLESS[:1]
    named = {}
    for name in names:
        kind, _, parameter = name.partition(":")
        named[name] = served_by(
            preset(kind, **({"parameter": _number(name, parameter)} if parameter else {})), estimate
        )
    return named


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"objective '{name}': '{text}' is no number; write it like lcb:2") from None
