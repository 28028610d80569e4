"""`surefoot select`: choose which pairs of a policy's completions to label."""

from __future__ import annotations

from pathlib import Path

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.feedback.select import SelectArguments

    return SelectArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Score the completions, choose pairs by the rule, and write them with a record."""
    from rich.console import Console

    from surefoot.feedback.select import PAIRS, run_select

    quieten()
    (args,) = parse(option_types(), arguments, "select")
    with progress() as show:
        record = run_select(args, given_settings(arguments, "select"), show)
    metrics = record["metrics"]
    console = Console()
    console.print(
        f"{metrics['pairs']:,} of {metrics['candidates']:,} candidate pairs, of {metrics['prompts']:,} prompts, "
        f"by {metrics['rule']}"
    )
    if metrics["pairs_there_are"] > metrics["candidates"] + metrics["excluded"] + metrics["without_margin"]:
        console.print(f"candidates were drawn at random from {metrics['pairs_there_are']:,} pairs (max_pairs)")
    console.print(f"pairs: {Path(args.output_dir) / PAIRS}", soft_wrap=True)
