"""`surefoot forecast`: what each objective would give at each KL budget, before any training."""

from __future__ import annotations

from pathlib import Path

from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten


def run(arguments: list[str]) -> None:
    """Draw and score candidates, solve every objective exactly, print the advice, and write page, JSON and config."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from surefoot.forecast import ForecastArguments, run_forecast
    from surefoot.reports.forecast import build_forecast, print_forecast

    quieten()
    (args,) = parse((ForecastArguments,), arguments, "forecast")
    settings = given_settings(arguments)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        found = run_forecast(args, settings, show)
    console = Console()
    print_forecast(console, found)
    folder = Path(args.output_dir)
    page = build_forecast(folder / "forecast.html", found, settings)
    if found["recommendation"]["row"] is not None:
        console.print(f"config to train by: {folder / 'rloo.yaml'}", soft_wrap=True)
    console.print(f"page: {page.resolve().as_uri()}", soft_wrap=True)
