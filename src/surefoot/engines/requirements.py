"""What an engine's own settings must be for its token rewards to be those of the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError

__all__ = ["ESTIMATORS", "check_algorithm"]

ESTIMATORS = ("gae", "rloo", "grpo", "reinforce_plus_plus")
"""Advantage estimators whose token rewards and advantages are tested."""


def check_algorithm(algorithm: Mapping[str, Any], actor: Mapping[str, Any], settings: EngineSettings) -> None:
    """Refuse settings of verl under which the run would optimise something else.

    Args:
        algorithm: verl's section of that name.
        actor: verl's section actor_rollout_ref.actor.

    Raises:
        ConfigError: names the setting, and what to set.
    """
    if not algorithm.get("use_kl_in_reward"):
        raise ConfigError("algorithm.use_kl_in_reward must be true: the weights are in the reward's penalty")
    if algorithm.get("kl_penalty", "kl") not in ("kl", "k1"):
        raise ConfigError(
            f"algorithm.kl_penalty must be kl, got {algorithm['kl_penalty']}: only ln(π/π₀) in the reward has the "
            "gradient of the KL (docs/method.md 8)"
        )
    if algorithm.get("adv_estimator") not in ESTIMATORS:
        raise ConfigError(
            f"algorithm.adv_estimator must be one of {', '.join(ESTIMATORS)}, got {algorithm.get('adv_estimator')}: "
            "others weren't shown to use the penalised rewards"
        )
    controller = algorithm.get("kl_ctrl") or {}
    if controller.get("type", "fixed") != "fixed":
        raise ConfigError(
            "algorithm.kl_ctrl.type must be fixed: verl's controller sees an unweighted mean over tokens and isn't in "
            "its checkpoints; set surefoot.target_kl, in nats per sequence, to adapt β"
        )
    if actor.get("use_kl_loss"):
        raise ConfigError("actor_rollout_ref.actor.use_kl_loss must be false: it is a second, unweighted KL")
    by_spread = algorithm.get("adv_estimator") == "grpo" and algorithm.get("norm_adv_by_std_in_grpo", True)
    if by_spread and settings.objective.weights != "none":
        raise ConfigError(
            "algorithm.norm_adv_by_std_in_grpo must be false: dividing by a group's spread undoes an absolute penalty "
            "(docs/method.md 8.2)"
        )
