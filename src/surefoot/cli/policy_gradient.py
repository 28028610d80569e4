"""Shared by `surefoot rloo` and `surefoot grpo`: parse the settings, train, and print a table of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surefoot.cli.launching import launched
from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten

__all__ = ["print_run", "run_command"]


def run_command(kind: str, option_types: Callable[[], tuple[type, ...]], arguments: list[str]) -> None:
    """Parse, align the policy, and print what came of it.

    Args:
        kind: rloo or grpo.
        option_types: gives the script's, the trainer's and the model's settings classes.
    """
    if launched(kind, arguments):
        return
    from surefoot.training.run_online import run_policy_gradient

    quieten()
    script, args, model = parse(option_types(), arguments, kind)
    script.check()
    if script.reward_config is not None:
        with args.main_process_first(local=False, desc="reward source"):  # the others find it finished
            script.reward_source, script.reward_config = _train_source(script.reward_config), None
    record = run_policy_gradient(kind, script, args, model, given_settings(arguments, kind))
    print_run(f"{record['metrics']['steps']} steps of {kind.upper()}, preset {args.preset}", record, args.output_dir)


def print_run(title: str, record: dict[str, Any], output_dir: str) -> None:
    """A table of the logged figures at the start and at the end."""
    from rich.console import Console
    from rich.table import Table

    metrics = record["metrics"]
    table = Table(title=title)
    for heading in ("", "start", "end"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, start in metrics["start"].items():
        table.add_row(name, _shown(start), _shown(metrics["end"][name]))
    console = Console()
    console.print(table)
    console.print(f"policy and record: {output_dir}")


def _train_source(config: str) -> str:
    from surefoot.cli.reward import train

    return train(["--config", config])


def _shown(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.3f}"
