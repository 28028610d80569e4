"""`surefoot forecast`: estimate each objective's gain and risk at each KL budget, before any training."""

from __future__ import annotations

from pathlib import Path

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.forecast import ForecastArguments

    return ForecastArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Draw and score candidates, solve every objective exactly, print the advice, and write page, JSON and config."""
    from rich.console import Console

    from surefoot.forecast import run_forecast
    from surefoot.reports.forecast import build_forecast, print_forecast

    quieten()
    (args,) = parse(option_types(), arguments, "forecast")
    settings = given_settings(arguments, "forecast")
    with progress() as show:
        forecast = run_forecast(args, settings, show)
    console = Console()
    print_forecast(console, forecast)
    folder = Path(args.output_dir)
    page = build_forecast(folder / "forecast.html", forecast, settings)
    if forecast["recommendation"]["row"] is not None:
        console.print(f"config to train by: {folder / 'rloo.yaml'}", soft_wrap=True)
    console.print(f"page: {page.resolve().as_uri()}", soft_wrap=True)
