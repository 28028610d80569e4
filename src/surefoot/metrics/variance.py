"""Whether a variance finds mistakes on labelled pairs, and how members and weights vary.

NumPy and SciPy only, as in `intervals`. Rows with NaN are left out, and `n` counts the rest. Intervals are of 95%
unless told otherwise and take rows for independent, which pairs of one prompt are not quite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from surefoot.errors import DataError
from surefoot.metrics._checks import (
    TIE,
    Integers,
    flags,
    group_index,
    known_rows,
    levels_of,
    nulls,
    one_row,
    refuse_infinite,
    same_length,
    table,
)
from surefoot.metrics.intervals import Floats, Interval, placements, spearman

__all__ = [
    "CoefficientOfVariation",
    "RiskCoverage",
    "auroc_difference",
    "coefficient_of_variation",
    "effective_members",
    "length_correlation",
    "risk_coverage",
    "split_sizes",
]


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """Risk–coverage curve: share of mistakes among the pairs of least uncertainty, by the share answered.

    Args:
        coverage: (points,) share answered, rising to 1; one point per level of uncertainty.
        risk: (points,) share of mistakes among those answered.
        area: under the curve (AURC); lower is better.
        random_area: of an uninformative uncertainty: the error rate.
        best_area: of the best order, which answers every mistake last.
    """

    coverage: Floats
    risk: Floats
    area: float
    random_area: float
    best_area: float

    @property
    def excess(self) -> float:
        """Excess area (E-AURC), area − best_area: the cost of the order alone, 0 at best."""
        return self.area - self.best_area

    def thinned(self, points: int) -> RiskCoverage:
        """The curve with at most `points` points for plotting: both ends, and between them evenly in coverage.

        Raises:
            DataError: points is below 2.
        """
        if points < 2:
            raise DataError(f"points is {points}; a curve keeps its two ends, so give at least 2")
        if len(self.coverage) <= points:
            return self
        wanted = np.linspace(self.coverage[0], self.coverage[-1], points)
        kept = np.unique(np.searchsorted(self.coverage, wanted))
        return replace(self, coverage=self.coverage[kept], risk=self.risk[kept])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON with the excess; NaN is written as None."""
        areas = {name: getattr(self, name) for name in ("area", "random_area", "best_area", "excess")}
        return {"coverage": self.coverage.tolist(), "risk": self.risk.tolist()} | nulls(areas)


def risk_coverage(uncertainty: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Risk–coverage curve (Geifman and El-Yaniv 2017) and its area (Geifman, Uziel and El-Yaniv 2019).

    risk(k) is the share of mistakes among the k pairs of least uncertainty, and the area is (1/n) Σₖ risk(k), k = 1 …
    n. Pairs tied in uncertainty make one point, and in the area they count as if in random order (the mean over all
    orders of the ties); a constant uncertainty thus has the error rate r for its area. The best order has
    (1/n) Σₖ max(0, k − (1 − r)n)/k, which for large n is r + (1 − r) ln(1 − r).

    Args:
        uncertainty: (pairs,) higher is answered later; infinite is last.
        wrong: (pairs,) booleans.

    Returns:
        No points and NaN areas without pairs.

    Raises:
        DataError: lengths differ, or `wrong` is neither 0 nor 1.

    >>> curve = risk_coverage([0.1, 0.2, 0.3, 0.4], [False, True, False, True])
    >>> curve.risk.round(4).tolist(), curve.random_area
    ([0.0, 0.5, 0.3333, 0.5], 0.5)
    >>> round(curve.area, 4), round(curve.best_area, 4), round(curve.excess, 4)
    (0.3333, 0.2083, 0.125)
    """
    x, labels = known_rows(uncertainty=uncertainty, wrong=wrong)
    mistakes, n = flags("wrong", labels), len(x)
    if n == 0:
        return RiskCoverage(np.empty(0), np.empty(0), math.nan, math.nan, math.nan)
    _, levels, sizes = np.unique(x, return_inverse=True, return_counts=True)
    answered = np.cumsum(sizes)
    made = np.cumsum(np.bincount(levels, mistakes))
    k = np.arange(1, n + 1)
    expected = np.interp(k, np.append(0, answered), np.append(0.0, made))
    best = np.maximum(0, k - (n - made[-1])) / k
    return RiskCoverage(
        coverage=answered / n,
        risk=made / answered,
        area=float((expected / k).mean()),
        random_area=float(made[-1] / n),
        best_area=float(best.mean()),
    )


def auroc_difference(first: ArrayLike, second: ArrayLike, positive: ArrayLike, confidence: float = 0.95) -> Interval:
    """Difference of two scores' AUROCs on the same rows, with DeLong's interval (DeLong et al. 1988).

    The interval is normal, d ± z·√(S₁₀/h + S₀₁/m): S₁₀ is the variance (ddof=1) over the h hits of the difference of
    the two scores' placements, S₀₁ that over the m misses. It is not cut at ±1.

    Args:
        first, second: (n,) higher should mean positive; only their ranks count. Rows that lack one are left out.
        positive: (n,) booleans.

    Returns:
        The value is `intervals.auroc(first).value − intervals.auroc(second).value`. [0, 0] where both rank the rows
        alike. NaN throughout if a class is empty; a NaN interval if one has a single row, or if the variance is 0
        otherwise (both perfect, say), which would claim certainty.

    Raises:
        DataError: lengths differ, or `positive` is neither 0 nor 1.

    >>> auroc_difference([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], [False, False, True, True]).value
    0.25
    """
    x, y, labels = known_rows(first=first, second=second, positive=positive)
    hits, n = flags("positive", labels), len(x)
    if not 0 < hits.sum() < n:
        return Interval(math.nan, math.nan, math.nan, n)
    ours, theirs = (placements(scores[hits], scores[~hits]) for scores in (x, y))
    value = float(ours[0].mean()) - float(theirs[0].mean())
    if np.array_equal(stats.rankdata(x), stats.rankdata(y)):
        return Interval(0.0, 0.0, 0.0, n)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if min(len(d) for d in differences) < 2:
        return Interval(value, math.nan, math.nan, n)
    variance = sum(float(d.var(ddof=1)) / len(d) for d in differences)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance) if variance > 0 else math.nan
    return Interval(value, value - half, value + half, n)


def effective_members(wrong: ArrayLike) -> float:
    """Effective number of members: as many independent ones would average out their mistakes as well.

    It is K/(1 + (K − 1)ρ̄), ρ̄ the mean correlation of two members' mistakes (Kish 1965, the design effect): the
    variance over pairs of the mean of the members' standardised mistakes is 1 over this number. K where mistakes are
    uncorrelated, 1 where they are the same. Nothing is cut: a negative ρ̄ gives more than K, and infinity at its
    least, −1/(K − 1), where the mistakes cancel exactly.

    Args:
        wrong: (pairs, members) booleans. A member with no mistakes or nothing else has no correlation: it is left
            out, of K too. Pairs with a NaN are left out.

    Returns:
        NaN if fewer than two members are left.

    Raises:
        DataError: not two dimensions, or values that are neither 0 nor 1.

    >>> round(effective_members([[1, 1], [1, 0], [0, 1], [0, 0]]), 6)
    2.0
    >>> round(effective_members([[1, 1], [0, 0], [0, 0]]), 6)
    1.0
    """
    mistakes = flags("wrong", table("wrong", wrong)).astype(np.float64)
    rate = mistakes.mean(axis=0) if len(mistakes) else np.zeros(mistakes.shape[1])
    kept = mistakes[:, (rate > 0) & (rate < 1)]
    count = kept.shape[1]
    if count < 2:
        return math.nan
    total = float(np.corrcoef(kept, rowvar=False).sum())  # K(1 + (K − 1)ρ̄)
    return count * count / total if total > TIE * count else math.inf


def split_sizes(margins: ArrayLike) -> tuple[int, ...]:
    """Number of pairs with 0, 1, … ⌊K/2⌋ of the K members in the minority.

    The minority is min(members with m > 0, members with m < 0); a margin of 0 takes neither side.

    Args:
        margins: (pairs, members); pairs with a NaN are left out.

    Raises:
        DataError: not two dimensions, or no member.

    >>> split_sizes([[1.0, 2.0, 3.0], [1.0, -1.0, 2.0], [-1.0, -2.0, 0.0]])
    (2, 1)
    """
    m = table("margins", margins)
    minority = np.minimum((m > 0).sum(axis=1), (m < 0).sum(axis=1))
    return tuple(np.bincount(minority, minlength=m.shape[1] // 2 + 1).tolist())


@dataclass(frozen=True, slots=True)
class CoefficientOfVariation:
    """Coefficients of variation: standard deviations over |mean of all values|; NaN where unknown.

    Args:
        overall: of all values.
        within: inside a group, pooled over groups.
        between: of the groups' means.
    """

    overall: float
    within: float
    between: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON; NaN is written as None."""
        return nulls({"overall": self.overall, "within": self.within, "between": self.between})


def coefficient_of_variation(values: ArrayLike, groups: ArrayLike | None = None) -> CoefficientOfVariation:
    """Coefficient of variation sd/|μ|, overall, within groups and between them; μ is the mean of all values.

    overall has the sd of all values (ddof=1); within has √(Σ(x − x̄_g)²/(n − G)), pooled over the G groups (ddof=1
    each); between has the sd of the groups' means (ddof=1), each group counting once. The means keep the noise of what
    they average, so between is not 0 where groups differ by chance alone.

    Args:
        values: (n,) such as weights; NaN is left out.
        groups: (n,) the same for completions of one prompt.

    Returns:
        NaN where μ = 0 or there are too few values: two for overall, two of one group for within, two groups for
        between. Without groups within and between are NaN.

    Raises:
        DataError: a value is infinite, lengths differ, or a group is NaN.

    >>> coefficient_of_variation([1.0, 3.0, 5.0, 7.0], [0, 0, 1, 1])  # √20/3, √2 and √8 over 4
    CoefficientOfVariation(overall=0.645497, within=0.353553, between=0.707107)
    """
    x = one_row("values", values)
    refuse_infinite(values=x)
    known = ~np.isnan(x)
    index = None if groups is None else group_index(groups, known)
    x = x[known]
    scale = abs(float(x.mean())) if len(x) else 0.0
    if len(x) < 2 or scale == 0:
        return CoefficientOfVariation(math.nan, math.nan, math.nan)
    overall = float(x.std(ddof=1)) / scale
    if index is None:
        return CoefficientOfVariation(overall, math.nan, math.nan)
    means = _means(x, index)
    freedom = len(x) - len(means)
    squares = float(((x - means[index]) ** 2).sum())
    within = math.sqrt(squares / freedom) / scale if freedom else math.nan
    between = float(means.std(ddof=1)) / scale if len(means) > 1 else math.nan
    return CoefficientOfVariation(overall, within, between)


def length_correlation(
    values: ArrayLike, lengths: ArrayLike, groups: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """Spearman's ρ of values and lengths, within groups if there are any (both less their group's mean).

    The interval is Fisher's, as in `intervals.spearman`. With G groups its variance is (1 + ρ²/2)/(n − G − 2):
    centring takes G − 1 degrees of freedom, as a partial correlation's controls do. Centred values within 1e-12 of the
    largest value are tied, or rounding would rank them.

    Args:
        values, lengths: (n,) in any units; rows that lack one are left out.
        groups: (n,) the same for completions of one prompt. A row that is alone in its group is left out, since its
            centred value is always 0.

    Returns:
        NaN for fewer than four rows, or where values or lengths don't vary (within groups).

    Raises:
        DataError: a value or length is infinite, lengths differ, or a group is NaN.

    >>> length_correlation([1.0, 2.0, 8.0, 9.0], [30, 40, 10, 20]).value
    -0.6
    >>> length_correlation([1.0, 2.0, 8.0, 9.0], [30, 40, 10, 20], [0, 0, 1, 1]).value
    1.0
    """
    x, y = one_row("values", values), one_row("lengths", lengths)
    same_length(values=x, lengths=y)
    refuse_infinite(values=x, lengths=y)
    if groups is None:
        return spearman(x, y, confidence)
    known = ~(np.isnan(x) | np.isnan(y))
    index = group_index(groups, known)
    company = np.bincount(index)[index] > 1
    index = np.unique(index[company], return_inverse=True)[1]
    x, y = (_centred(a[known][company], index) for a in (x, y))
    rho = spearman(x, y, confidence)
    return _refitted(rho, len(np.unique(index)), confidence)


def _centred(values: Floats, index: Integers) -> Floats:
    """Ranks (as levels) of the values less their group's mean."""
    if len(values) == 0:
        return values
    centred = values - _means(values, index)[index]
    order = np.argsort(centred)
    levels = np.empty(len(values))
    levels[order] = levels_of(centred[order], TIE * float(np.abs(values).max()))
    return levels


def _refitted(rho: Interval, groups: int, confidence: float) -> Interval:
    """The correlation with an interval for the degrees of freedom that centring leaves."""
    if math.isnan(rho.value) or abs(rho.value) >= 1:
        return rho
    freedom = rho.n - groups - 2
    if freedom < 1:
        return Interval(rho.value, math.nan, math.nan, rho.n)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = z * math.sqrt((1 + rho.value * rho.value / 2) / freedom)
    centre = math.atanh(rho.value)
    return Interval(rho.value, math.tanh(centre - half), math.tanh(centre + half), rho.n)


def _means(values: Floats, index: Integers) -> Floats:
    return np.bincount(index, values) / np.bincount(index)
