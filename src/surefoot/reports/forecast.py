"""Print a forecast in the terminal, and write it as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.figures import drawn
from surefoot.reports.forecast_figures import forecast_figure
from surefoot.reports.html import render
from surefoot.reports.wording import interval, interval_of, number, percent_interval, signed

__all__ = ["build_forecast", "forecast_words", "print_forecast"]

Cells = tuple[str, ...]
_HEADINGS = ("objective", "KL", "β", "gain [95%]", "over the first", "risk", "prompts worse off", "effective n")
_JUDGES = {
    "gold": "Judged by the true reward that was given",
    "draws": "Judged by other rewards that the preferences could have given",
}


def build_forecast(path: str | Path, forecast: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write the page of a forecast to `path`; it loads nothing from elsewhere.

    Args:
        forecast: the result of `surefoot.forecast`, or forecast.json.
    """
    judges = [
        {
            "name": name,
            "heading": heading,
            "gain": drawn(forecast_figure(forecast, name, "gain")),
            "risk": drawn(forecast_figure(forecast, name, "prompt_risk")),
            "table": ("Every objective and budget", _HEADINGS, _rows(forecast, name, forecast["kl_budgets"])),
            "best_of_n": ("Best of n on the same candidates", ("by", "n", "KL", "gain [95%]"), _best(forecast, name)),
        }
        for name, heading in _JUDGES.items()
        if any(row[name] is not None for row in forecast["rows"])
    ]
    page = render(
        "forecast.html.j2",
        title="What would training against this reward give?",
        forecast=forecast,
        words=forecast_words(forecast),
        judges=judges,
        settings=sorted((name, value) for name, value in settings.items() if value is not None),
    )
    return write_text(path, page)


def print_forecast(console: Console, forecast: dict[str, Any]) -> None:
    """All objectives at one budget, the advised one or else the largest; then the advice in plain words."""
    advice = forecast["recommendation"]
    budget = forecast["kl_budgets"][-1] if advice["row"] is None else advice["row"]["kl_budget"]
    table = Table(title=f"{_JUDGES[advice['judge']]}, at {number(budget)} nats", title_justify="left")
    for place, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for row in _rows(forecast, advice["judge"], [budget]):
        table.add_row(*row)
    console.print(table)
    for line in forecast_words(forecast):
        console.print(f"- {line}", soft_wrap=True)


def forecast_words(forecast: dict[str, Any]) -> list[str]:
    """The advice and the limits of the forecast, one sentence each."""
    lines = list(forecast["recommendation"]["reasons"])
    draws = forecast["draws"]
    if draws is not None:
        origin = {
            "posterior": f"{draws['count']} draws of the posterior",
            "members": f"the {draws['count']} members",
            "independent": f"{draws['count']} independent draws with the source's variance",
        }[draws["origin"]]
        lines.append(
            f"Risk from estimation alone: {draws['runs']} runs, with {origin} taking turns as the truth. A bias that "
            "all of them share, such as one of the annotators, is invisible to it."
        )
    reliability = forecast["reliability"]
    if reliability is not None and reliability < 0.6:
        lines.append(
            f"The variance has a reliability of {number(reliability)}: weights and bounds made of it are mostly "
            "noise, and so is what is said here of them."
        )
    if forecast["prompts_left_out"]:
        lines.append(f"{forecast['prompts_left_out']} prompts with too few usable candidates were left out.")
    return lines


def _rows(forecast: dict[str, Any], judge: str, budgets: list[float]) -> list[Cells]:
    return [
        _cells(row, row[judge])
        for row in forecast["rows"]
        if row[judge] is not None and row["kl_budget"] in budgets and row["beta"] is not None
    ]


def _cells(row: dict[str, Any], judged: dict[str, Any]) -> Cells:
    versus = judged["versus"]
    return (
        row["objective"].replace("_", "-"),
        number(row["kl_budget"]),
        f"{row['beta']:.3g}",
        interval(interval_of(judged["gain"])),
        "" if versus is None or versus["value"] is None else signed(versus["value"]),
        percent_interval(interval_of(judged["risk"])),
        percent_interval(interval_of(judged["prompt_risk"])),
        number(row["effective"], 1),
    )


def _best(forecast: dict[str, Any], judge: str) -> list[Cells]:
    return [
        (row["objective"].replace("_", "-"), str(row["n"]), number(row["kl"]), interval(interval_of(row["gain"])))
        for row in forecast["best_of_n"]
        if row["judge"] == judge
    ]
