"""`surefoot dpo`: TRL's DPO command with variance-weighted log-ratios."""

from __future__ import annotations

from surefoot.cli.launching import launched
from surefoot.cli.online import print_run
from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten


def run(arguments: list[str]) -> None:
    """Align the policy with DPO on preferences whose sides have variances."""
    from trl import ModelConfig

    from surefoot.training.dpo_config import VarianceAwareDPOConfig
    from surefoot.training.run_dpo import DPOScriptArguments, run_dpo

    quieten()
    if launched("dpo", arguments):
        return
    script, args, model = parse(
        (DPOScriptArguments, VarianceAwareDPOConfig, ModelConfig), arguments, "dpo", judges=True
    )
    record = run_dpo(script, args, model, given_settings(arguments))
    metrics = record["metrics"]
    anchors = ", ".join(f"{kind} {share:.0%}" for kind, share in metrics.get("anchor", {}).items())
    title = f"{metrics['steps']} steps of DPO, weights {args.weights}" + (f", anchors: {anchors}" if anchors else "")
    print_run(title, record, args.output_dir)
