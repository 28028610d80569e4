"""Agreement between annotators, and how long a label takes; pure functions of answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from surefoot.feedback.answers import Answer

__all__ = ["krippendorff_alpha", "summary"]

Level = Literal["nominal", "ordinal"]
_VALUES = {"b": -1, "tie": 0, "a": 1}
"""An answer's value: how much better the first completion is, whichever side it was shown on."""


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level = "nominal") -> float:
    """Krippendorff's α = 1 − observed/expected disagreement, for any number of annotators and missing answers.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", Annenberg School for Communication.

    Args:
        units: the values that each unit was given, in any order; units with fewer than two values don't count.
        level: "nominal" (values are equal or not) or "ordinal" (values have an order).

    Returns:
        1 for perfect agreement, 0 for chance; NaN where no unit has two values, or all values are equal.

    >>> krippendorff_alpha([[0, 0], [1, 1], [0, 1]])
    0.4444444444444444
    """
    paired = [unit for unit in units if len(unit) >= 2]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return math.nan
    place = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in paired:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    difference = _squared_difference(totals, level)
    observed = (coincidences * difference).sum()
    expected = (np.outer(totals, totals) * difference).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def _squared_difference(totals: "np.ndarray[Any, Any]", level: Level) -> "np.ndarray[Any, Any]":
    """δ² of each two values: 0 or 1, or the squared number of values that lie from one to the other."""
    if level == "nominal":
        return 1 - np.eye(len(totals))
    middles = np.cumsum(totals) - totals / 2
    return np.asarray(np.subtract.outer(middles, middles) ** 2)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, agreement and time per label, of all annotators and of each; unknown figures are None.

    Skipped pairs count as unanswered. `left_share` is the share of preferences for the left side, about a half where
    the sides say nothing.
    """
    units: dict[Hashable, list[float]] = {}
    for answer in answers:
        if answer.choice != "skip":
            units.setdefault(answer.pair, []).append(_VALUES[answer.choice])
    alphas = {level: krippendorff_alpha(list(units.values()), level) for level in ("nominal", "ordinal")}
    names = sorted({answer.annotator for answer in answers})
    return {
        "pairs": len(units),
        "pairs_with_two": sum(len(values) >= 2 for values in units.values()),
        "alpha": {level: None if math.isnan(alpha) else alpha for level, alpha in alphas.items()},
        **_figures(answers),
        "annotators": {name: _figures([answer for answer in answers if answer.annotator == name]) for name in names},
    }


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts of each choice, median seconds of a label, and the share of preferences for the left side."""
    seconds = [answer.seconds for answer in answers if answer.seconds is not None and answer.choice != "skip"]
    sided = [answer.choice == answer.left for answer in answers if answer.left and answer.choice in ("a", "b")]
    return {
        "answers": len(answers),
        "choices": dict(sorted(Counter(answer.choice for answer in answers).items())),
        "median_seconds": float(np.median(seconds)) if seconds else None,
        "left_share": sum(sided) / len(sided) if sided else None,
    }
