"""`surefoot online`: rounds of choosing pairs, labelling them and training the reward again."""

from __future__ import annotations

from pathlib import Path

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.feedback.online_settings import OnlineArguments

    return OnlineArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Run the rounds that can be run, print them, and say what is waited for."""
    from rich.console import Console

    from surefoot.feedback.online import run_online
    from surefoot.reports.online import build_online, print_online

    quieten()
    (args,) = parse(option_types(), arguments, "online")
    settings = given_settings(arguments, "online")
    with progress() as show:
        online = run_online(args, settings, show)
    console = Console()
    print_online(console, online)
    if online["rounds"]:
        page = build_online(Path(args.output_dir) / "online.html", online, settings)
        console.print(f"reward: {online['source']}", soft_wrap=True)
        console.print(f"all labels: {online['preferences']}", soft_wrap=True)
        console.print(f"page: {page.resolve().as_uri()}", soft_wrap=True)
