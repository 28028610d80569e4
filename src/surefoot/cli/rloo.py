"""`surefoot rloo`: TRL's RLOO command with a reward that has a variance."""

from __future__ import annotations

from surefoot.cli.online import run_command


def run(arguments: list[str]) -> None:
    """Align the policy with RLOO."""
    from surefoot.training.rloo_config import VarianceAwareRLOOConfig

    run_command("rloo", VarianceAwareRLOOConfig, arguments)
