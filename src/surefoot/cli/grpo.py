"""`surefoot grpo`: TRL's GRPO command with a reward that has a variance."""

from __future__ import annotations

from surefoot.cli.policy_gradient import run_command
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from trl import ModelConfig

    from surefoot.training.grpo_config import VarianceAwareGRPOConfig
    from surefoot.training.run_online import OnlineScriptArguments

    return OnlineScriptArguments, VarianceAwareGRPOConfig, ModelConfig, JudgeArguments


def run(arguments: list[str]) -> None:
    """Align the policy with GRPO."""
    run_command("grpo", option_types, arguments)
