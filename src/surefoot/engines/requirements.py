"""What an engine's own settings must be for its token rewards to be those of the objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError

__all__ = ["ESTIMATORS", "OPENRLHF_ESTIMATORS", "check_algorithm", "check_openrlhf"]

ESTIMATORS = ("gae", "rloo", "grpo", "reinforce_plus_plus")
"""verl's advantage estimators whose token rewards and advantages are tested."""
OPENRLHF_ESTIMATORS = ("gae", "reinforce", "rloo")
"""OpenRLHF's."""


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


def check_openrlhf(args: Any) -> None:
    """Refuse arguments of OpenRLHF under which the run would optimise something else.

    Args:
        args: of `train_ppo_ray`, nested as OpenRLHF's `hierarchize` makes them; `reward.clip_range` is None for no
            clipping.

    Raises:
        ConfigError: names the argument, and what to set.
    """
    _check_penalty(args.algo.kl)
    _check_rewards(args)
    if args.algo.advantage.estimator not in OPENRLHF_ESTIMATORS:
        raise ConfigError(
            f"--algo.advantage.estimator must be one of {', '.join(OPENRLHF_ESTIMATORS)}, got "
            f"{args.algo.advantage.estimator}: the others subtract the mean of all a prompt's rewards, which scales "
            "the rewards and not the penalty, or divide by their spread; use rloo"
        )
    if args.train.async_enable:
        raise ConfigError("--train.async_enable must be left out: the asynchronous trainer isn't supported")


def _check_penalty(kl: Any) -> None:
    """Refuse a KL that isn't ln(π/π₀) in the reward, times a constant."""
    if kl.use_loss:
        raise ConfigError("--algo.kl.use_loss must be left out: it moves the KL into the loss, where no weight is")
    if kl.estimator != "k1":
        raise ConfigError(
            f"--algo.kl.estimator must be k1, got {kl.estimator}: only ln(π/π₀) in the reward has the gradient of the "
            "KL (docs/method.md 8)"
        )
    if not kl.init_coef > 0:
        raise ConfigError(f"--algo.kl.init_coef must be positive, got {kl.init_coef}: it is β, and 0 is no penalty")
    if kl.target is not None:
        raise ConfigError(
            "--algo.kl.target must be left out: OpenRLHF's controller sees an unweighted mean over tokens and isn't "
            "in its checkpoints; set --surefoot.target_kl, in nats per sequence, to adapt β"
        )


def _check_rewards(args: Any) -> None:
    """Refuse rewards without a variance, and what changes a reward after its variance was taken."""
    if not args.reward.remote_url and not args.train.agent_func_path:
        raise ConfigError(
            "--reward.remote_url is missing: give http://HOST:PORT/get_reward of `surefoot serve`; OpenRLHF's own "
            "reward models have no variance"
        )
    if args.reward.clip_range is not None:
        raise ConfigError(
            f"--reward.clip_range must be left out, got {args.reward.clip_range}: what it cuts off a reward is not in "
            "the objective; `surefoot openrlhf` switches it off"
        )
    for name in ("overlong_buffer_len", "stop_properly_penalty_coef"):
        if getattr(args.reward, name) is not None:
            raise ConfigError(f"--reward.{name} must be left out: it changes rewards whose variance is known already")
