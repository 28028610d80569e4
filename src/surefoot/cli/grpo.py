"""`surefoot grpo`: TRL's GRPO command with a reward that has a variance."""

from __future__ import annotations

from surefoot.cli.online import run_command


def run(arguments: list[str]) -> None:
    """Align the policy with GRPO."""
    from surefoot.training.grpo_config import VarianceAwareGRPOConfig

    run_command("grpo", VarianceAwareGRPOConfig, arguments)
