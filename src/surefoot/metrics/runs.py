"""Compare aligned policies over runs: along a trajectory, at equal KL, and between methods (docs/method.md 12).

`intervals.py` has the statistics of any set of numbers; here are those of a study of runs. An unknown value is NaN,
and a level that a run never reached is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from surefoot.metrics.intervals import Floats, Interval, wilson_bounds

__all__ = [
    "Frontier",
    "detectable_difference",
    "detectable_risk_difference",
    "frontier",
    "holm",
    "matched_level",
    "over_optimisation_gap",
    "prompt_risk",
    "prompt_risk_difference",
    "running_mean",
    "settled_value",
    "values_at",
]

Path = tuple[Floats, Floats]
"""KL from the reference, and a value, both (steps,) in the order of training."""


def running_mean(values: ArrayLike, window: int) -> Floats:
    """Running mean of `window` neighbours, (steps − window + 1,); the mean of all if there are fewer steps.

    >>> running_mean([1.0, 2.0, 6.0], 2).tolist(), running_mean([1.0, 3.0], 7).tolist()
    ([1.5, 4.0], [2.0])
    """
    if window < 1:
        raise ValueError(f"a window of {window} values has no mean")
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return x
    width = min(window, len(x))
    return np.convolve(x, np.full(width, 1.0 / width), mode="valid")


def over_optimisation_gap(gold: ArrayLike, window: int) -> float:
    """Best running mean of the true reward along a run minus the last one.

    Never negative, and above 0 for a flat noisy run, because the best of many noisy means is taken: compare it
    between methods, not with 0. NaN for fewer than window + 1 known values.

    >>> over_optimisation_gap([0.0, 2.0, 4.0, 2.0, 0.0], window=2)
    2.0
    """
    x = np.asarray(gold, dtype=np.float64)
    smooth = running_mean(x[~np.isnan(x)], window)
    return float(smooth.max() - smooth[-1]) if len(smooth) > 1 else math.nan


def values_at(kl: ArrayLike, values: ArrayLike, levels: ArrayLike) -> Floats:
    """Value where the KL first reaches each level, interpolated between the steps before and after.

    Args:
        kl, values: (steps,) in the order of training; smooth them first, a batch's KL is noisy.
        levels: (levels,) nats.

    Returns:
        (levels,); NaN where the run never reached the level, or began above it.

    >>> values_at([0.0, 2.0, 1.0, 4.0], [0.0, 1.0, 9.0, 3.0], [1.0, 2.0, 3.0, 5.0]).tolist()
    [0.5, 1.0, 5.0, nan]
    """
    x, y, at = (np.asarray(each, dtype=np.float64) for each in (kl, values, levels))
    if not len(x):
        return np.full(at.shape, math.nan)
    after = np.searchsorted(np.maximum.accumulate(x), at, side="left")
    right, left = np.minimum(after, len(x) - 1), np.maximum(np.minimum(after, len(x) - 1) - 1, 0)
    step = np.where(x[right] > x[left], x[right] - x[left], 1.0)
    interpolated = y[left] + (y[right] - y[left]) * (at - x[left]) / step
    interpolated = np.where((after == 0) & (at == x[0]), y[0], interpolated)
    return np.where((after == len(x)) | ((after == 0) & (at < x[0])), math.nan, interpolated)


def settled_value(
    kl: ArrayLike, values: ArrayLike, level: float, within: float, *, window: int = 7, least: int = 5
) -> float:
    """Mean value over the steps of a run's second half whose smoothed KL is near a level.

    Where a level is first reached (`values_at`) the value at that KL still grows, and a run that climbs faster gets
    there with less of it. In the second half that is over.

    Args:
        kl, values: (steps,) in the order of training, not smoothed.
        level, within: the KL and how far from it still counts as equal, in nats.
        window: steps of the centred running mean of the KL; the ends are continued.
        least: steps that must be near.

    Returns:
        NaN if fewer than `least` steps are near the level.

    >>> settled_value([1.0] * 10 + [4.0] * 10, [0.0] * 10 + [3.0] * 10, level=4.0, within=0.5)
    3.0
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (kl, values))
    if not len(x):
        return math.nan
    before, after = (window - 1) // 2, window // 2
    smooth = np.convolve(np.pad(x, (before, after), mode="edge"), np.full(window, 1.0 / window), mode="valid")
    near = np.abs(smooth - level) <= within
    near[: len(x) // 2] = False
    return float(y[near].mean()) if near.sum() >= least else math.nan


def matched_level(peaks: Sequence[ArrayLike], share: float = 0.9) -> float:
    """Largest KL that at least `share` of the runs of every method reached; NaN if a method has no run.

    The KL that all runs reached would depend on the one run that moved least. The value of runs that fell short is
    unknown at this level; report how many.

    Args:
        peaks: for each method the largest KL of each of its runs.

    >>> matched_level([[5.0, 6.0, 7.0, 1.0], [4.0, 4.5, 9.0, 9.0]], share=0.75)
    4.5
    """
    levels = []
    for peak in peaks:
        falling = np.sort(np.asarray(peak, dtype=np.float64))[::-1]
        needed = math.ceil(share * len(falling) - 1e-9)
        levels.append(float(falling[needed - 1]) if len(falling) else math.nan)
    return math.nan if not levels or any(math.isnan(level) for level in levels) else min(levels)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Mean over runs of a value at each KL level, its pointwise interval, and how many runs reached the level."""

    levels: Floats
    mean: Floats
    low: Floats
    high: Floats
    n: Floats


def frontier(paths: Sequence[Path], levels: ArrayLike, confidence: float = 0.95) -> Frontier:
    """Mean value against KL over runs, with Student's interval mean ± t(n−1) · sd/√n (ddof=1) at each level.

    The band is pointwise: it holds at one level, not at all of them together. The mean is over the runs that reached
    the level, which may differ from the others. Unknown without runs; the interval, for fewer than two.
    """
    at = np.asarray(levels, dtype=np.float64)
    rows = np.array([values_at(kl, values, at) for kl, values in paths]).reshape(len(paths), len(at))
    known = ~np.isnan(rows)
    n = known.sum(axis=0).astype(np.float64)
    some, several = np.where(n > 0, n, math.nan), np.where(n > 1, n, math.nan)
    mean = np.where(known, rows, 0.0).sum(axis=0) / some
    squares = np.where(known, rows - mean, 0.0) ** 2
    sd = np.sqrt(squares.sum(axis=0) / (several - 1))
    half = stats.t.ppf(0.5 + confidence / 2, several - 1) * sd / np.sqrt(several)
    return Frontier(at, mean, mean - half, mean + half, n)


def holm(p: ArrayLike) -> Floats:
    """Holm's adjusted p-values (Holm 1979).

    Rejecting those below α makes any false rejection with a probability of at most α. p₍ᵢ₎ becomes the largest of (m −
    j + 1)·p₍ⱼ₎ over j ≤ i, at most 1. An unknown p stays unknown and isn't counted.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(raw.shape, math.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * raw[order]))
    return adjusted


def detectable_difference(differences: ArrayLike, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest mean paired difference that a study of as many runs would detect, given the observed spread.

    That is the δ at which a two-sided paired t-test at level `alpha` rejects with probability `power`:
    P(|T| > t(n−1, 1−α/2)) with T noncentral t, n − 1 degrees of freedom, noncentrality δ√n/sd (ddof=1). It depends on
    the observed spread alone, not on the observed mean; at small n that spread is itself rough. In the units of the
    differences; NaN for fewer than two.
    """
    known = np.asarray(differences, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return math.nan
    return _noncentrality(len(known), alpha, power) * float(known.std(ddof=1)) / math.sqrt(len(known))


@lru_cache(maxsize=512)
def _noncentrality(n: int, alpha: float, power: float) -> float:
    critical = float(stats.t.ppf(1 - alpha / 2, n - 1))

    def excess(shift: float) -> float:
        tails = (stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift))
        return float(np.nansum(tails)) - power  # SciPy gives NaN for a far tail that is 0 to rounding

    high = 1.0
    while excess(high) < 0:
        high *= 1.5
    return float(optimize.brentq(excess, 1e-9, high))


def detectable_risk_difference(risk: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest fall of a risk that n paired runs would detect; NaN if not even a fall to 0.

    Detected means that McNemar's exact test, two-sided at `alpha`, rejects with probability `power`. Of n pairs
    m ~ Bin(n, a + b) are discordant, a = risk·(1 − lower) and b = lower·(1 − risk), and of those Bin(m, a/(a + b)) are
    losses of the riskier method. Losses of a pair are taken as independent; where they are correlated, smaller
    falls are detected (Connor 1987).

    >>> round(detectable_risk_difference(0.5, 50), 3), detectable_risk_difference(0.1, 12)
    (0.287, nan)
    """
    if math.isnan(risk) or n < 1:
        return math.nan

    def excess(lower: float) -> float:
        return _mcnemar_power(risk, lower, n, alpha) - power

    return risk - float(optimize.brentq(excess, 0.0, risk)) if excess(0.0) >= 0 else math.nan


def _mcnemar_power(risk: float, lower: float, n: int, alpha: float) -> float:
    more, less = risk * (1 - lower), lower * (1 - risk)
    if more + less == 0:
        return 0.0
    discordant = np.arange(n + 1)
    most = _most_losses(n, alpha)
    tails = stats.binom.cdf(most, discordant, less / (more + less)) + stats.binom.cdf(
        most, discordant, more / (more + less)
    )
    return float((stats.binom.pmf(discordant, n, more + less) * tails).sum())


@lru_cache(maxsize=64)
def _most_losses(n: int, alpha: float) -> Floats:
    """Largest smaller count at which the exact test rejects, for 0 to n discordant pairs; −1 if it can't."""
    counts = np.arange(n + 1)
    quantile = stats.binom.ppf(alpha / 2, counts, 0.5)
    return np.where(2 * stats.binom.cdf(quantile, counts, 0.5) <= alpha, quantile, quantile - 1)


def prompt_risk(
    gains: ArrayLike, rng: np.random.Generator, *, draws: int = 4000, confidence: float = 0.95
) -> Interval:
    """Prompt risk: share of runs × prompts with a gain below 0 (docs/method.md 12.3).

    The interval is Wilson's with an effective number of observations, p(1 − p)/v, v the variance of the share p when
    runs and prompts are both resampled (the pigeonhole bootstrap, Owen 2007, arXiv:0712.1111), and Student's quantile
    with min(runs, prompts) − 1 degrees of freedom. Near 0, where a good method should be, the bootstrap's own
    percentiles cover far too seldom. If no gain is below 0, or all are, v is 0 and can't be used. The number is then
    min(runs, prompts), as if all gains of a prompt, or of a run, had one sign.

    Args:
        gains: (runs, prompts) mean true reward of the run's completions of the prompt minus the reference's; NaN where
            unknown, which isn't counted.

    Returns:
        Share of the known gains below 0, and the number of runs that have any. The interval is unknown (NaN) for fewer
        than two runs or two prompts.

    >>> risk = prompt_risk([[-1.0, 2.0], [1.0, math.nan]], np.random.default_rng(0)); round(risk.value, 4), risk.n
    (0.3333, 2)
    """
    worse = _dense(_below_zero(gains))
    share, fewest = _share(worse), min(worse.shape)
    if fewest < 2:
        return Interval(share, math.nan, math.nan, len(worse))
    variance = float(np.nanvar(_two_way_bootstrap(worse, rng, draws), ddof=1))
    if not 0 < share < 1 or variance == 0:
        bounds = wilson_bounds(share, float(fewest), float(stats.norm.ppf(0.5 + confidence / 2)))
    else:
        # The noise of the bootstrap must not give more observations than there are gains.
        n = min(share * (1 - share) / variance, float((~np.isnan(worse)).sum()))
        bounds = wilson_bounds(share, n, float(stats.t.ppf(0.5 + confidence / 2, fewest - 1)))
    return Interval(share, *bounds, len(worse))


def prompt_risk_difference(
    gains: ArrayLike,
    baseline: ArrayLike,
    rng: np.random.Generator,
    *,
    draws: int = 4000,
    confidence: float = 0.95,
) -> Interval:
    """Prompt risk minus a baseline's at the same seeds and prompts, with a two-way percentile bootstrap interval.

    Args:
        gains, baseline: (runs, prompts), rows of one seed and columns of one prompt; NaN where unknown.

    Returns:
        Below 0 the method is better. Unknown without pairs; the interval is unknown for fewer than two runs or two
        prompts, and where all differences are equal, since resampling then has no spread.

    >>> prompt_risk_difference([[1.0, 2.0]], [[-1.0, 1.0]], np.random.default_rng(0)).value
    -0.5
    """
    differences = _dense(_below_zero(gains) - _below_zero(baseline))
    mean = _share(differences)
    if min(differences.shape) < 2 or np.nanmin(differences) == np.nanmax(differences):
        return Interval(mean, math.nan, math.nan, len(differences))
    means = _two_way_bootstrap(differences, rng, draws)
    low, high = np.nanquantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(mean, float(low), float(high), len(differences))


def _below_zero(gains: ArrayLike) -> Floats:
    """Indicator of a gain below 0: 1 or 0, NaN where the gain is unknown."""
    x = np.asarray(gains, dtype=np.float64)
    return np.where(np.isnan(x), math.nan, x < 0)


def _dense(values: Floats) -> Floats:
    """The values without the rows and columns that are all NaN."""
    known = ~np.isnan(values)
    return values[known.any(axis=1)][:, known.any(axis=0)]


def _share(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _two_way_bootstrap(values: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Means of the known values when rows and columns are resampled independently, (draws,)."""
    known = ~np.isnan(values)
    rows, columns = (_times_drawn(size, draws, rng) for size in values.shape)
    total = ((rows @ np.where(known, values, 0.0)) * columns).sum(axis=1)
    count = ((rows @ known.astype(np.float64)) * columns).sum(axis=1)
    return total / np.where(count > 0, count, math.nan)


def _times_drawn(size: int, draws: int, rng: np.random.Generator) -> Floats:
    """How often each of `size` items is drawn in bootstrap samples of that size, (draws, size)."""
    picked = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)
