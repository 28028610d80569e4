"""Figures in words: how an unknown is shown, and what a handful of runs can and can't say."""

from __future__ import annotations

import math

from surefoot.maths.statistics import Interval
from surefoot.reports.records import MethodSummary

__all__ = ["headline", "interval", "number", "percent_interval", "proof"]

UNKNOWN = "not scored"
FEW = 20
"""Below so many runs a risk of 0 can't be told from one of 15% (Wilson), and the report says so."""


def number(value: float | None, digits: int = 2) -> str:
    """A number, or that there is none."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:.{digits}f}".replace("-", "−")


def interval(found: Interval, digits: int = 2) -> str:
    """value [low, high]; the interval is left out where it is unknown."""
    if math.isnan(found.low):
        return number(found.value, digits)
    return f"{number(found.value, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def percent_interval(found: Interval) -> str:
    """The same as whole percentages."""
    if math.isnan(found.value):
        return UNKNOWN
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def headline(summaries: list[MethodSummary]) -> list[str]:
    """A sentence for each method: how often it ended below the reference, and what it gained."""
    return [
        f"{one.label.capitalize()}: ended below the reference in {_count(one)} of {one.runs} runs; mean gain in true "
        f"reward {interval(one.gain)}."
        for one in summaries
    ]


def proof(summaries: list[MethodSummary]) -> str:
    """What this number of runs can show, by a fixed rule."""
    runs = min(one.runs for one in summaries)
    upper = max(one.risk.high for one in summaries if one.risk.value == min(s.risk.value for s in summaries))
    if runs < FEW:
        return (
            f"{runs} runs of each method demonstrate and don't prove: even a method that never ended below the "
            f"reference in {runs} runs may do so in up to {upper:.0%} of them (95% interval). Nothing here should be "
            "read as a comparison of risks."
        )
    return f"With {runs} runs of each method, the intervals in the table say how sure each figure is."


def _count(one: MethodSummary) -> int:
    return round(one.risk.value * one.risk.n)
