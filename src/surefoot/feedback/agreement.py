"""Agreement between annotators or judges, and how long a label takes; pure functions of answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surefoot.feedback.answers import Answer

__all__ = ["cohen_kappa", "fleiss_kappa", "krippendorff_alpha", "summary"]

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


def cohen_kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's κ (1960) of two raters: (observed − expected)/(1 − expected) agreement, expected by both raters' shares.

    Args:
        tables: (..., categories, categories) how often the first rater gave the row's value and the second the
            column's.

    Returns:
        (...) 1 for perfect agreement, 0 for chance; NaN without units, or if both gave one and the same value to all.

    >>> cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])).item()
    0.4
    """
    total = tables.sum(axis=(-2, -1))
    first, second = tables.sum(axis=-1), tables.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _beyond_chance(np.trace(tables, axis1=-2, axis2=-1) / total, (first * second).sum(axis=-1) / total**2)


def fleiss_kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fleiss' κ (1971) of several raters who all rated every unit; expected by the shares of all raters together.

    Args:
        tables: (..., categories, categories) of each two raters as for `cohen_kappa`, summed over the pairs of raters.

    Returns:
        (...) as `cohen_kappa`.

    >>> round(fleiss_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])).item(), 4)
    0.3939
    """
    both = tables + np.swapaxes(tables, -2, -1)
    total, shares = both.sum(axis=(-2, -1)), both.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _beyond_chance(np.trace(both, axis1=-2, axis2=-1) / total, (shares**2).sum(axis=-1) / total**2)


def _beyond_chance(observed: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))


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
