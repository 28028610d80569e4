"""Calibration of a reward's margins on labelled pairs: likelihood, Brier score, reliability curve.

NumPy and SciPy only, as in `intervals`. A pair has the margin m = r(chosen) − r(rejected). The predicted probability
of its label is p = σ(m), so the outcome is always 1. Rows with NaN are left out, and `n` counts the rest;
`choice_probabilities` alone keeps them, as NaN. Intervals are of 95% unless told otherwise and take rows for
independent, which pairs of one prompt are not quite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from surefoot.errors import DataError
from surefoot.metrics._checks import TIE, Integers, levels_of, one_row, probabilities, refuse_infinite, same_length
from surefoot.metrics.intervals import Floats, Interval, wilson

__all__ = [
    "ReliabilityCurve",
    "brier",
    "choice_probabilities",
    "expected_calibration_error",
    "negative_log_likelihood",
    "negative_log_likelihood_of_margins",
    "reliability_curve",
]


def choice_probabilities(margins: ArrayLike, variance: ArrayLike | None = None, factor: float = 1.0) -> Floats:
    """Predicted probability of each label, σ(m) in [0, 1], σ the logistic function.

    With a variance it is E[σ(m + √(cv) z)] ≈ σ(m/√(1 + πcv/8)), z standard normal (MacKay 1992; docs/method.md 5).

    Args:
        margins: (pairs,) m, reward of the chosen side less that of the rejected.
        variance: (pairs,) v of the margins, in reward².
        factor: c ≥ 0; without a variance it has no effect.

    Returns:
        (pairs,); NaN where the margin or its variance is NaN.

    Raises:
        DataError: shapes differ, a margin or variance is infinite, or a variance or the factor is negative.

    >>> choice_probabilities([0.0, 2.0]).round(4).tolist()
    [0.5, 0.8808]
    >>> choice_probabilities([2.0], [24 / np.pi]).round(4).tolist()  # as σ(1)
    [0.7311]
    """
    return np.asarray(special.expit(_shrunk(margins, variance, factor)), dtype=np.float64)


def _shrunk(margins: ArrayLike, variance: ArrayLike | None, factor: float) -> Floats:
    m = one_row("margins", margins)
    refuse_infinite(margins=m)
    if variance is None:
        return m
    v = one_row("variance", variance)
    same_length(margins=m, variance=v)
    refuse_infinite(variance=v)
    if (v < 0).any():
        row = int(np.argmax(v < 0))
        raise DataError(f"variance in row {row} is {v[row]}; a variance is at least 0, and NaN where unknown")
    if not 0 <= factor < math.inf:
        raise DataError(f"factor is {factor}; it multiplies variances, so it is at least 0 and finite")
    return m / np.sqrt(1 + math.pi / 8 * factor * v)


def negative_log_likelihood(p: ArrayLike, confidence: float = 0.95) -> Interval:
    """Negative log likelihood: mean of −ln p in nats, with the interval mean ± z·sd/√n (ddof=1), not cut at 0.

    Infinite if a p is 0; σ(m) underflows to 0 below m = −745, where `negative_log_likelihood_of_margins` is still
    exact. The interval is NaN then, and with fewer than two pairs.

    Args:
        p: (pairs,) probabilities given to what came true.

    Raises:
        DataError: a p is outside [0, 1].

    >>> round(negative_log_likelihood([0.5, 0.5, 0.5]).value, 6)
    0.693147
    """
    with np.errstate(divide="ignore"):
        return _mean(-np.log(probabilities(p)), confidence)


def negative_log_likelihood_of_margins(
    margins: ArrayLike, variance: ArrayLike | None = None, factor: float = 1.0, confidence: float = 0.95
) -> Interval:
    """Negative log likelihood from margins: the mean of ln(1 + e^−m′), exact for any margin.

    Args:
        margins, variance, factor: as for `choice_probabilities`; m′ is m, or m/√(1 + πcv/8) with a variance.

    Raises:
        DataError: as `choice_probabilities`.

    >>> negative_log_likelihood_of_margins([-1000.0, 1000.0]).value
    500.0
    """
    shrunk = _shrunk(margins, variance, factor)
    return _mean(np.logaddexp(0.0, -shrunk[~np.isnan(shrunk)]), confidence)


def brier(p: ArrayLike, confidence: float = 0.95) -> Interval:
    """Brier score: mean of (1 − p)², in [0, 1]; 0.25 for a coin. Half of Brier's (1950) sum over both outcomes.

    The interval is mean ± z·sd/√n (sd with ddof=1), not cut at 0 or 1; NaN with fewer than two pairs.

    Args:
        p: (pairs,) probabilities given to what came true.

    Raises:
        DataError: a p is outside [0, 1].

    >>> brier([0.5, 1.0, 0.0]).value
    0.4166666666666667
    """
    return _mean((1 - probabilities(p)) ** 2, confidence)


def _mean(values: Floats, confidence: float) -> Interval:
    n = len(values)
    value = float(values.mean()) if n else math.nan
    if n < 2 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, n)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(value, value - half, value + half, n)


@dataclass(frozen=True, slots=True)
class ReliabilityCurve:
    """Accuracy by bin of confidence; the two are equal for a calibrated model.

    Args:
        confidence: mean confidence of each bin, rising, in [0.5, 1].
        accuracy: share of right answers in each bin, with Wilson's interval.
        count: pairs in each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[Interval, ...]
    count: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        accuracy = [interval.to_dict() for interval in self.accuracy]
        return {"confidence": list(self.confidence), "accuracy": accuracy, "count": list(self.count)}


def reliability_curve(p: ArrayLike, bins: int = 10) -> ReliabilityCurve:
    """Accuracy by bin of confidence max(p, 1 − p).

    A pair counts as right where p > 0.5 and half right where p = 0.5. Bins are of equal mass (Nguyen and O'Connor
    2015): pairs in order of confidence have the ranks 1 … n, and one of rank k falls into bin ⌊bins·(k − ½)/n⌋. Pairs
    tied in confidence (to 1e-12) go together, by the middle of their ranks, so the order of rows changes nothing; bins
    are then uneven, and those left empty are dropped. Half a right answer widens Wilson's interval to the whole
    numbers on its two sides.

    Args:
        p: (pairs,) probabilities given to what came true.
        bins: at most how many bins.

    Raises:
        DataError: a p is outside [0, 1], or bins is below 1.

    >>> curve = reliability_curve([0.9, 0.8, 0.4, 0.4], bins=2)
    >>> curve.confidence, [a.value for a in curve.accuracy], curve.count
    ((0.6, 0.85), [0.0, 1.0], (2, 2))
    """
    if bins < 1:
        raise DataError(f"bins is {bins}; at least one is needed")
    known = probabilities(p)
    confidence = np.maximum(known, 1 - known)
    order = np.argsort(confidence)
    confidence, right = confidence[order], ((np.sign(known - 0.5) + 1) / 2)[order]
    index = _equal_mass(confidence, bins)
    count, sums, rights = (np.bincount(index, weights) for weights in (None, confidence, right))
    used = count > 0
    return ReliabilityCurve(
        confidence=tuple((sums[used] / count[used]).tolist()),
        accuracy=tuple(_wilson(*pair) for pair in zip(rights[used].tolist(), count[used].tolist(), strict=True)),
        count=tuple(count[used].tolist()),
    )


def _equal_mass(rising: Floats, bins: int) -> Integers:
    """Bin of each of the sorted values, in integer arithmetic so that rounding does not matter."""
    levels = levels_of(rising, TIE)
    ends = np.cumsum(np.bincount(levels))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return (bins * (starts + ends)[levels]) // (2 * max(1, len(rising)))


def _wilson(successes: float, n: int) -> Interval:
    low, high = wilson(math.floor(successes), n), wilson(math.ceil(successes), n)
    return Interval(successes / n, low.low, high.high, n)


def expected_calibration_error(p: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: Σ (share of pairs)·|accuracy − mean confidence| over bins, in [0, 1].

    Source: Naeini et al. 2015. The bins are those of `reliability_curve`. Chance alone makes it positive: a calibrated
    model of accuracy a has about √(2a(1−a)·bins/(πn)) with n pairs, so compare only equal n and bins.

    Args:
        p: (pairs,) probabilities given to what came true.
        bins: at most how many bins.

    Returns:
        NaN without pairs.

    Raises:
        DataError: a p is outside [0, 1], or bins is below 1.

    >>> round(expected_calibration_error([0.9, 0.8, 0.4, 0.4], bins=2), 6)  # (0.6 + 0.15)/2
    0.375
    """
    curve = reliability_curve(p, bins)
    if not curve.count:
        return math.nan
    gaps = [abs(accuracy.value - c) for accuracy, c in zip(curve.accuracy, curve.confidence, strict=True)]
    return float(np.average(gaps, weights=curve.count))
