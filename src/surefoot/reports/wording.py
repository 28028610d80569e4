"""Figures in words: how numbers and intervals are written, and how an unknown is shown."""

from __future__ import annotations

import math

from surefoot.metrics.intervals import Interval

__all__ = [
    "UNKNOWN",
    "budget",
    "compact",
    "counted",
    "difference",
    "interval",
    "number",
    "percent_interval",
    "points",
    "probability",
    "signed",
    "times",
]

UNKNOWN = "not scored"


def number(value: float | None, digits: int = 2) -> str:
    """A number, or that there is none."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign; a dash if it is unknown."""
    if math.isnan(value):
        return "–"
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def interval(found: Interval, digits: int = 2) -> str:
    """value [low, high]; the interval is left out where it is unknown."""
    if math.isnan(found.low):
        return number(found.value, digits)
    return f"{number(found.value, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def compact(found: Interval, *, percent: bool = False) -> str:
    """.40 [.22, .58] or 17% [5, 45], for narrow tables; nothing where nothing is known."""
    if math.isnan(found.value):
        return ""
    value = f"{found.value:.0%}" if percent else _bare(found.value)
    ends = [f"{100 * end:.0f}" if percent else _bare(end) for end in (found.low, found.high)]
    return value if math.isnan(found.low) else f"{value} [{', '.join(ends)}]"


def _bare(value: float) -> str:
    return number(value).replace("0.", ".", 1) if abs(value) < 1 else number(value)


def difference(found: Interval) -> str:
    """+.12 [−.03, +.27], with signs; a dash if it is unknown."""
    if math.isnan(found.value) or math.isnan(found.low):
        return signed(found.value)
    return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def percent_interval(found: Interval) -> str:
    """The same as whole percentages."""
    if math.isnan(found.value):
        return UNKNOWN
    if math.isnan(found.low):
        return f"{found.value:.0%}"
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def points(found: Interval) -> str:
    """A difference of two shares in percentage points, such as −12 [−18, −7]; a dash if it is unknown."""
    value, low, high = (signed(100 * end, 0) for end in (found.value, found.low, found.high))
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def probability(value: float) -> str:
    """A p-value, or a dash."""
    if math.isnan(value):
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def counted(count: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def times(value: float) -> str:
    """A ratio, such as 2.3×."""
    return "–" if math.isnan(value) else f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def budget(value: float | None) -> str:
    """A KL budget in words."""
    return "β constant" if value is None else f"{value:g} nats"
