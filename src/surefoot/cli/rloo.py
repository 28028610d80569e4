"""`surefoot rloo`: TRL's RLOO command with a reward that has a variance."""

from __future__ import annotations

from surefoot.cli.policy_gradient import run_command
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from trl import ModelConfig

    from surefoot.training.rloo_config import VarianceAwareRLOOConfig
    from surefoot.training.run_online import OnlineScriptArguments

    return OnlineScriptArguments, VarianceAwareRLOOConfig, ModelConfig, JudgeArguments


def run(arguments: list[str]) -> None:
    """Align the policy with RLOO."""
    run_command("rloo", option_types, arguments)
