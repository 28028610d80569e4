"""Write numbers, intervals and p-values as text, and unknown ones as such."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from surefoot.metrics.intervals import Interval

__all__ = [
    "UNKNOWN",
    "budget",
    "compact",
    "counted",
    "difference",
    "equals",
    "interval",
    "interval_of",
    "number",
    "percent",
    "percent_interval",
    "points",
    "probability",
    "signed",
    "significant",
    "times",
]

UNKNOWN = "not scored"


def number(value: float | None, digits: int = 2) -> str:
    """A rounded number, or "not scored" if it is unknown."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def significant(value: float | None, digits: int = 2) -> str:
    """A number to so many significant digits, or "not scored" if it is unknown: 0.052, 120, 3.1e−6."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if value == 0 or math.isinf(value):
        return f"{value:g}".replace("-", "−")
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    places = digits - 1 - int(power)
    plain = f"{round(value, places):.{max(0, places)}f}" if int(power) >= -4 else f"{mantissa}e{int(power)}"
    return plain.replace("-", "−")


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage, never "−0%"; "not scored" if it is unknown."""
    return number(share) if share is None or math.isnan(share) else f"{number(100 * share, digits)}%"


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign; a dash if it is unknown."""
    if math.isnan(value):
        return "–"
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def interval(estimate: Interval, digits: int = 2) -> str:
    """value [low, high]; the interval is left out where it is unknown."""
    if math.isnan(estimate.low):
        return number(estimate.value, digits)
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def interval_of(figure: Mapping[str, Any]) -> Interval:
    """The interval that a record holds as an object; None is unknown: NaN."""
    value, low, high = (math.nan if figure[name] is None else figure[name] for name in ("value", "low", "high"))
    return Interval(value, low, high, figure["n"])


def compact(estimate: Interval, *, percent: bool = False) -> str:
    """value [low, high] without leading zeros, such as .40 [.22, .58] or 17% [5, 45]; empty if it is unknown."""
    if math.isnan(estimate.value):
        return ""
    value, low, high = (
        number(100 * end, 0) if percent else _bare(end) for end in (estimate.value, estimate.low, estimate.high)
    )
    value += "%" * percent
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def _bare(value: float) -> str:
    return number(value).replace("0.", ".", 1) if abs(value) < 1 else number(value)


def difference(estimate: Interval) -> str:
    """A difference with its interval and signs, such as +.12 [−.03, +.27]; a dash if it is unknown."""
    if math.isnan(estimate.value) or math.isnan(estimate.low):
        return signed(estimate.value)
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def percent_interval(estimate: Interval) -> str:
    """A share with its interval in whole percentages."""
    if math.isnan(estimate.low):
        return percent(estimate.value)
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def points(estimate: Interval) -> str:
    """A difference of two shares in percentage points, such as −12 [−18, −7]; a dash if it is unknown."""
    value, low, high = (signed(100 * end, 0) for end in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def probability(value: float) -> str:
    """A p-value, or a dash."""
    if math.isnan(value):
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def equals(p: float) -> str:
    """A p-value after its letter: "= 0.04" or "< .001"."""
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


def counted(count: int, what: str) -> str:
    """A number with its noun in the singular or plural, such as 2 runs."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def times(value: float) -> str:
    """A ratio, such as 2.3×."""
    return "–" if math.isnan(value) else f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def budget(value: float | None) -> str:
    """A KL budget in words."""
    return "β constant" if value is None else f"{value:g} nats"
