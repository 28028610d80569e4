"""`surefoot bon`: sample n completions of each prompt and keep the best by a reward with a variance."""

from __future__ import annotations

from functools import partial
from typing import Any

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.training.best_of_n import BestOfNArguments

    return BestOfNArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Sample, score, choose, and print the best-of-n curve."""
    from rich.console import Console
    from rich.table import Table

    from surefoot.training.best_of_n import CHOSEN, run_best_of_n

    quieten()
    (args,) = parse(option_types(), arguments, "bon")
    with progress() as show:
        record = run_best_of_n(args, given_settings(arguments, "bon"), partial(show, "prompts"))
    metrics = record["metrics"]
    names = [name for name in ("reward", "reward_mean", "gold") if name in metrics]
    table = Table(title=f"best of n by {args.preset}, {metrics['prompts']} prompts, mean [95%]")
    for heading in ("n", "KL, nats", *names):
        table.add_column(heading, justify="right")
    for i, (n, kl) in enumerate(zip(metrics["n"], metrics["kl"], strict=True)):
        shown = [metrics[name][i] for name in names if metrics[name]]
        table.add_row(str(n), f"{kl:.2f}", *(_interval(**mean) for mean in shown))
    console = Console()
    console.print(table)
    console.print(f"chosen completions: {args.output_dir}/{CHOSEN}")


def _interval(value: float | None, low: float | None, high: float | None, **more: Any) -> str:
    """The mean with its interval, which is unknown of one prompt, as the mean is where nothing could be scored."""
    if value is None:
        return "unknown"
    return f"{value:.3f} (unknown)" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
