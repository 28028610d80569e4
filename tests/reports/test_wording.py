"""Numbers as text: significant digits, and shares that are never a negative zero."""

import math

import pytest

from surefoot.metrics.intervals import Interval
from surefoot.reports.wording import UNKNOWN, compact, percent, percent_interval, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0516, "0.052"), (0.000314, "0.00031"), (0.0000314, "3.1e−5"), (0.996, "1.0"), (9.96, "10"), (1234.5, "1200"),
     (-0.031, "−0.031"), (0.0, "0"), (math.nan, UNKNOWN), (None, UNKNOWN)],
)  # fmt: skip
def test_two_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_a_share_that_rounds_to_nothing_has_no_sign() -> None:
    assert percent(-0.004) == "0%"
    assert percent(-0.006) == "−1%"
    assert percent(None) == UNKNOWN
    around = Interval(-0.001, -0.004, 0.004, 9)
    assert percent_interval(around) == "0% [0%, 0%]"
    assert compact(around, percent=True) == "0% [0, 0]"
