"""`surefoot dpo`: TRL's DPO command with variance-weighted log-ratios."""

from __future__ import annotations

from surefoot.cli.launching import launched
from surefoot.cli.parsing import given_settings, parse
from surefoot.cli.policy_gradient import print_run
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from trl import ModelConfig

    from surefoot.training.dpo_config import VarianceAwareDPOConfig
    from surefoot.training.run_dpo import DPOScriptArguments

    return DPOScriptArguments, VarianceAwareDPOConfig, ModelConfig, JudgeArguments


def run(arguments: list[str]) -> None:
    """Align the policy with DPO on preferences whose sides have variances."""
    if launched("dpo", arguments):
        return
    from surefoot.training.run_dpo import run_dpo

    quieten()
    script, args, model = parse(option_types(), arguments, "dpo")
    record = run_dpo(script, args, model, given_settings(arguments, "dpo"))
    metrics = record["metrics"]
    anchors = ", ".join(f"{kind} {share:.0%}" for kind, share in metrics.get("anchor", {}).items())
    title = f"{metrics['steps']} steps of DPO, weights {args.weights}" + (f", anchors: {anchors}" if anchors else "")
    print_run(title, record, args.output_dir)
