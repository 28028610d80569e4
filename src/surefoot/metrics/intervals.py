"""Intervals and tests for proportions, means, correlations and AUROCs, on NumPy arrays (docs/method.md 12).

Every interval is of 95% unless told otherwise. An unknown value is NaN; records write it as null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "Interval",
    "auroc",
    "bootstrap_mean",
    "brown_forsythe",
    "kendall_tau",
    "lower_tail",
    "pairwise_agreement",
    "risk",
    "sign_test",
    "spearman",
    "spread",
    "wilson",
    "wilson_bounds",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON; NaN is written as None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Proportion with Wilson's interval (Wilson 1927); a value of NaN and [0, 1] without observations.

    >>> interval = wilson(0, 10); round(interval.low, 6), round(interval.high, 4)
    (0.0, 0.2775)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    low, high = wilson_bounds(successes / n, float(n), float(stats.norm.ppf(0.5 + confidence / 2)))
    return Interval(successes / n, low, high, n)


def wilson_bounds(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's bounds (1927) of a proportion: the p with |share − p| ≤ quantile·√(p(1 − p)/n).

    Args:
        share: observed, in [0, 1].
        n: number of independent observations, which may be a fraction where it is estimated (a design's effective n).
        quantile: of the standard normal distribution, or of Student's where the variance is estimated.

    >>> low, high = wilson_bounds(0.5, 4.0, 2.0); round(low, 4), round(high, 4)
    (0.1464, 0.8536)
    """
    z2 = quantile * quantile
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def risk(gains: ArrayLike, confidence: float = 0.95) -> Interval:
    """Share of runs that end below the reference (gain < 0), with Wilson's interval (docs/method.md 12.1)."""
    known = _known(gains)
    return wilson(int((known < 0).sum()), len(known), confidence)


def spread(values: ArrayLike) -> float:
    """Standard deviation over runs (ddof=1); NaN for fewer than two."""
    known = _known(values)
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan


def brown_forsythe(values: ArrayLike, baseline: ArrayLike) -> float:
    """p-value of Brown and Forsythe's test that two sets of runs have equal spread; NaN for fewer than two runs each.

    This is Levene's test on medians. NaN also where the distances from the median don't differ within either set, as
    with two runs each: there is nothing to compare the difference with.
    """
    first, second = _known(values), _known(baseline)
    if min(len(first), len(second)) < 2 or all(_range_of_distances(x) == 0 for x in (first, second)):
        return math.nan
    return float(stats.levene(first, second, center="median").pvalue)


def _range_of_distances(values: Floats) -> float:
    """Range of the distances from the median, 0 if they agree to rounding."""
    away = np.abs(values - np.median(values))
    return float(np.ptp(away)) if np.ptp(away) > 1e-12 * away.max() else 0.0


def lower_tail(values: ArrayLike, share: float = 0.1) -> float:
    """Mean of the lowest `share` of the runs, of at least one run; NaN without runs.

    >>> lower_tail([5.0, 1.0, 3.0])
    1.0
    """
    known = np.sort(_known(values))
    return float(known[: max(1, math.floor(share * len(known)))].mean()) if len(known) else math.nan


def bootstrap_mean(
    values: ArrayLike, rng: np.random.Generator, *, draws: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Mean with its percentile bootstrap interval.

    Give paired differences to compare methods by pairs. With one value the interval is unknown (NaN).
    """
    known = _known(values)
    if len(known) < 2:
        return Interval(float(known[0]) if len(known) else math.nan, math.nan, math.nan, len(known))
    means = known[rng.integers(len(known), size=(draws, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(known.mean()), float(low), float(high), len(known))


def sign_test(differences: ArrayLike) -> float:
    """Exact two-sided p-value of the sign test; differences of 0 are left out.

    >>> sign_test([1.0, 1.0, 1.0, 1.0, 0.0])
    0.125
    """
    known = _known(differences)
    positive, n = int((known > 0).sum()), int((known != 0).sum())
    return float(stats.binomtest(positive, n).pvalue) if n else math.nan


def pairwise_agreement(margins: ArrayLike) -> float:
    """Share of comparisons on whose winner two members agree, averaged over pairs of members.

    Args:
        margins: (pairs, members); a margin of 0 agrees with nothing but 0.
    """
    signs = np.sign(np.asarray(margins, dtype=np.float64))
    return _mean_over_pairs(signs, lambda a, b: float((a == b).mean()))


def kendall_tau(scores: ArrayLike) -> float:
    """Kendall's τ_b of two members' scores, averaged over pairs of members.

    Args:
        scores: (rows, members).
    """
    return _mean_over_pairs(np.asarray(scores, dtype=np.float64), lambda a, b: float(stats.kendalltau(a, b).statistic))


def _mean_over_pairs(columns: Floats, measure: Callable[[Floats, Floats], float]) -> float:
    count = columns.shape[1]
    if count < 2:
        return math.nan
    agreements = [measure(columns[:, i], columns[:, j]) for i in range(count) for j in range(i)]
    return float(np.mean(agreements))


def auroc(scores: ArrayLike, positive: ArrayLike, confidence: float = 0.95) -> Interval:
    """Area under the ROC curve, ties counted half, with DeLong's interval on the logit scale (DeLong et al. 1988).

    Args:
        scores: (n,) higher should mean positive.
        positive: (n,) booleans.

    Returns:
        NaN throughout if one class is empty.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    hit, miss = x[y], x[~y]
    if len(hit) == 0 or len(miss) == 0:
        return Interval(math.nan, math.nan, math.nan, len(x))
    above, below = placements(hit, miss)
    area = float(above.mean())
    variance = sum(v.var(ddof=1) / len(v) for v in (above, below) if len(v) > 1)
    if not 0 < area < 1 or variance == 0:
        return Interval(area, math.nan, math.nan, len(x))
    # On the logit scale the interval stays within [0, 1].
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return Interval(area, 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit)), len(x))


def placements(hit: Floats, miss: Floats) -> tuple[Floats, Floats]:
    """Share of misses below each hit, and of hits above each miss, ties counted half (DeLong et al. 1988).

    Each has the AUROC for its mean. Neither array may be empty or hold NaN.

    >>> above, below = placements(np.array([2.0, 3.0]), np.array([1.0, 2.0])); above.tolist(), below.tolist()
    ([0.75, 1.0], [1.0, 0.75])
    """
    all_ranks, hit_ranks, miss_ranks = (stats.rankdata(values) for values in (np.concatenate([hit, miss]), hit, miss))
    above = (all_ranks[: len(hit)] - hit_ranks) / len(miss)
    below = 1 - (all_ranks[len(hit) :] - miss_ranks) / len(hit)
    return above, below


def spearman(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Spearman's ρ with Fisher's interval, variance (1 + ρ²/2)/(n − 3) (Bonett and Wright 2000)."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = ~(np.isnan(x) | np.isnan(y))
    x, y, n = x[both], y[both], int(both.sum())
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(math.nan, math.nan, math.nan, n)
    rho = float(stats.spearmanr(x, y).statistic)
    if abs(rho) >= 1:
        return Interval(rho, rho, rho, n)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return Interval(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


def _known(values: ArrayLike | Sequence[float | None]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]
