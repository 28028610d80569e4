"""`surefoot rloo`: TRL's RLOO command with a reward that has a variance."""

from __future__ import annotations

from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten


def run(arguments: list[str]) -> None:
    """Parse TRL's settings and ours, align the policy, and print what came of it."""
    from rich.console import Console
    from rich.table import Table
    from trl import ModelConfig

    from surefoot.training.rloo_config import VarianceAwareRLOOConfig
    from surefoot.training.run_rloo import RLOOScriptArguments, run_rloo

    quieten()
    script, args, model = parse((RLOOScriptArguments, VarianceAwareRLOOConfig, ModelConfig), arguments, "rloo")
    script.check()
    if script.reward_config is not None:
        script.reward_source, script.reward_config = _train_source(script.reward_config), None
    record = run_rloo(script, args, model, given_settings(arguments))
    metrics = record["metrics"]
    table = Table(title=f"{metrics['steps']} steps of RLOO, preset {args.preset}")
    for heading in ("", "start", "end"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, start in metrics["start"].items():
        table.add_row(name, _shown(start), _shown(metrics["end"][name]))
    console = Console()
    console.print(table)
    console.print(f"policy and record: {args.output_dir}")


def _train_source(config: str) -> str:
    from surefoot.cli.reward import train

    return train(["--config", config])


def _shown(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.3f}"
