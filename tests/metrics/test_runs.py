"""Hand-worked values, limits, invariances; enumeration, simulation and the normal distribution as other opinions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from surefoot.metrics.intervals import wilson, wilson_bounds
from surefoot.metrics.runs import (
    detectable_difference,
    detectable_risk_difference,
    frontier,
    holm,
    matched_level,
    over_optimisation_gap,
    prompt_risk,
    prompt_risk_difference,
    running_mean,
    settled_value,
    values_at,
)


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 2.0, 6.0, 4.0], 3).tolist() == pytest.approx([3.0, 4.0])
    assert running_mean([5.0, 6.0], 1).tolist() == [5.0, 6.0]
    assert running_mean([], 3).tolist() == []
    with pytest.raises(ValueError, match="window of 0"):
        running_mean([1.0], 0)


def test_over_optimisation_gap() -> None:
    rising = np.linspace(0, 1, 30)
    assert over_optimisation_gap(rising, 5) == 0.0
    peak = np.concatenate([rising, np.linspace(1, 0.4, 30)])
    assert over_optimisation_gap(peak, 1) == pytest.approx(0.6)
    assert over_optimisation_gap(peak + 7.0, 4) == pytest.approx(over_optimisation_gap(peak, 4), abs=1e-12)
    assert over_optimisation_gap(np.append(peak, np.nan), 4) == over_optimisation_gap(peak, 4)
    assert math.isnan(over_optimisation_gap([1.0, 2.0, 3.0], 3))  # one mean has nothing to be compared with


def test_the_gap_of_pure_noise_is_above_zero() -> None:
    """As the docstring warns: the best of many noisy means is picked."""
    rng = np.random.default_rng(0)
    found = [over_optimisation_gap(rng.normal(size=60), 7) for _ in range(200)]
    assert np.mean(found) > 0.5


def test_values_at_takes_the_first_crossing_and_knows_nothing_beyond() -> None:
    kl, value = [0.0, 2.0, 1.0, 4.0], [0.0, 1.0, 9.0, 3.0]
    assert values_at(kl, value, [0.0, 0.5, 2.0, 4.0]).tolist() == pytest.approx([0.0, 0.25, 1.0, 3.0])
    assert np.isnan(values_at(kl, value, [4.0001, -0.1])).all()
    assert np.isnan(values_at([1.0, 2.0], [5.0, 6.0], [0.5])).all()  # it began above
    assert np.isnan(values_at([], [], [1.0])).all()
    assert values_at([0.0, 1.0, 1.0, 2.0], [0.0, 4.0, 8.0, 8.0], [1.0]).tolist() == [4.0]  # standing still


def test_values_at_of_a_monotone_path_is_interpolation() -> None:
    rng = np.random.default_rng(1)
    kl, value = np.sort(rng.uniform(0, 5, 40)), rng.normal(size=40)
    at = np.linspace(kl[0], kl[-1], 23)
    assert values_at(kl, value, at) == pytest.approx(np.interp(at, kl, value), abs=1e-12)
    assert values_at(kl, 2 * value + 1, at) == pytest.approx(2 * values_at(kl, value, at) + 1, abs=1e-12)


def test_settled_values_by_hand() -> None:
    kl = [0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 9.0, 4.0, 4.0]
    values = [1.0] * 5 + [2.0, 4.0, 50.0, 8.0, 10.0]
    one = settled_value(kl, values, 4.0, 0.5, window=1, least=4)
    assert one == 6.0  # the first half and the jump to 9 nats don't count
    assert math.isnan(settled_value(kl, values, 4.0, 0.5, window=1, least=5))
    assert settled_value(kl, values, 4.0, 5.0, window=1) == pytest.approx(14.8)
    assert math.isnan(settled_value([], [], 4.0, 0.5))
    # A window of three sees the jump one step early and late; at the ends the KL is continued.
    assert settled_value(kl, values, 4.0, 0.5, window=3, least=2) == pytest.approx((2.0 + 10.0) / 2)
    assert math.isnan(settled_value(kl, values, math.nan, 0.5))


def test_matched_level_by_hand() -> None:
    a, b = [5.0, 6.0, 7.0, 8.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0], [4.0] * 9 + [30.0]
    assert matched_level([a], 0.9) == 5.0  # one run of ten may fall short
    assert matched_level([a], 1.0) == 1.0
    assert matched_level([a, b], 0.9) == matched_level([b, a], 0.9) == 4.0
    assert math.isnan(matched_level([a, []]))
    assert math.isnan(matched_level([]))


def test_frontier_by_hand_and_against_scipy() -> None:
    paths = [(np.array([0.0, 2.0]), np.array([0.0, rate])) for rate in (2.0, 4.0, 9.0)]
    paths.append((np.array([0.0, 1.0]), np.array([0.0, 1.0])))  # never gets to 2
    found = frontier(paths, [0.0, 1.0, 2.0, 3.0])
    assert found.n.tolist() == [4, 4, 3, 0]
    assert found.mean[:3].tolist() == pytest.approx([0.0, 2.125, 5.0])
    theirs = stats.t.interval(0.95, 2, 5.0, stats.sem([2.0, 4.0, 9.0]))
    assert (found.low[2], found.high[2]) == pytest.approx(theirs, abs=1e-12)
    assert np.isnan([found.mean[3], found.low[3], found.high[3]]).all()
    alone = frontier(paths[:1], [1.0])
    assert alone.mean.tolist() == [1.0]
    assert np.isnan(alone.low).all()  # one run has no spread
    assert np.isnan(frontier([], [1.0]).mean).all()
    assert frontier(paths[::-1], [1.0, 2.0]).low == pytest.approx(found.low[1:3], abs=1e-12)


def test_the_frontiers_band_covers() -> None:
    """Runs around a known line: the pointwise band must hold it in about 95 of 100 studies."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        paths = [(np.array([0.0, 1.0]), np.array([0.0, rng.normal(0.5, 0.3)])) for _ in range(6)]
        found = frontier(paths, [1.0])
        hits += bool(found.low[0] <= 0.5 <= found.high[0])
    assert 0.917 <= hits / 400 <= 0.983  # three standard errors of 95% at 400 studies


def test_holm_by_hand_and_its_limits() -> None:
    assert holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]
    with_unknown = holm([0.01, math.nan, 0.04])
    assert with_unknown[[0, 2]].tolist() == pytest.approx([0.02, 0.04])  # an unknown test isn't counted
    assert math.isnan(with_unknown[1])
    assert len(holm([])) == 0


def test_holm_is_the_closure_of_bonferroni() -> None:
    """A hypothesis falls at level p if every intersection that holds it does: max over subsets of |S|·min p."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        p = rng.uniform(0, 0.4, 4)
        subsets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        closed = [min(1.0, max(len(s) * p[list(s)].min() for s in subsets if i in s)) for i in range(4)]
        assert holm(p) == pytest.approx(closed, abs=1e-12)


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(4)
    wrong = np.mean([(holm(rng.uniform(size=8)) < 0.05).any() for _ in range(3000)])
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)
    assert wrong >= 0.03  # and it isn't idle


@pytest.mark.parametrize("n", [5, 12, 30])
def test_detectable_difference_has_the_promised_power(n: int) -> None:
    """Simulated paired t-tests find a difference of that size in 80 of 100 studies."""
    rng = np.random.default_rng(n)
    observed = rng.normal(size=n)
    observed *= 0.7 / observed.std(ddof=1)
    size = detectable_difference(observed)
    draws = rng.normal(size, 0.7, (20_000, n))
    found = float((stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean())
    assert found == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 20_000))


def test_detectable_difference_in_its_limits() -> None:
    x = np.random.default_rng(5).normal(size=4000)
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * x.std(ddof=1) / math.sqrt(4000)
    assert detectable_difference(x) == pytest.approx(normal, rel=1e-3)
    assert detectable_difference(x[:10] + 3.0) == pytest.approx(detectable_difference(x[:10]), rel=1e-12)
    assert detectable_difference(3.0 * x[:10]) == pytest.approx(3.0 * detectable_difference(x[:10]), rel=1e-12)
    assert detectable_difference(x[:10], power=0.95) > detectable_difference(x[:10])
    assert detectable_difference([1.0, 1.0, math.nan]) == 0.0
    assert math.isnan(detectable_difference([1.0, math.nan]))
    assert math.isfinite(detectable_difference([0.0, 1.0]))  # SciPy's far tails are NaN there


def _mcnemar_by_enumeration(risk: float, lower: float, n: int) -> float:
    """Probability of p < .05 over all numbers of seeds at which the one, the other, or neither alone lost."""
    a, b = risk * (1 - lower), lower * (1 - risk)
    total = 0.0
    for one in range(n + 1):
        for other in range(n + 1 - one):
            if one + other and stats.binomtest(one, one + other).pvalue <= 0.05:
                total += stats.multinomial.pmf([one, other, n - one - other], n, [a, b, 1 - a - b])
    return total


@pytest.mark.parametrize(("risk", "n"), [(0.5, 20), (0.8, 12)])
def test_detectable_risk_by_enumeration(risk: float, n: int) -> None:
    fall = detectable_risk_difference(risk, n)
    assert 0 < fall < risk
    assert _mcnemar_by_enumeration(risk, risk - fall, n) == pytest.approx(0.8, abs=1e-9)


def test_detectable_risk_by_hand() -> None:
    """Five of five discordant pairs are just enough at α = 1/16: (1 − lower)⁵ = .8 from a risk of 1."""
    assert detectable_risk_difference(1.0, 5, alpha=1 / 16) == pytest.approx(0.8**0.2, abs=1e-9)
    assert math.isnan(detectable_risk_difference(1.0, 5, alpha=0.06))


def test_detectable_risk_in_its_limits() -> None:
    assert math.isnan(detectable_risk_difference(0.1, 12))  # even a risk of 0 would rarely be told from it
    assert math.isnan(detectable_risk_difference(0.0, 1000))  # nothing lies below
    assert math.isnan(detectable_risk_difference(math.nan, 12))
    assert math.isnan(detectable_risk_difference(0.5, 0))
    few, many = detectable_risk_difference(0.5, 30), detectable_risk_difference(0.5, 300)
    assert few > many
    # For many runs the test is normal: fall = (1.96 √D + 0.84 √(D − fall²)) / √n with D = a + b (Connor 1987).
    discordant = 0.5 * (1 - (0.5 - many)) + (0.5 - many) * 0.5
    normal = (1.96 * math.sqrt(discordant) + 0.8416 * math.sqrt(discordant - many**2)) / math.sqrt(300)
    assert many == pytest.approx(normal, rel=0.05)  # the exact test is a little stricter than its limit


GAINS = np.array([[-1.0, 0.5, 0.0, 2.0], [-2.0, -0.5, 1.0, math.nan], [-0.1, 0.4, 3.0, 1.0]])
"""Three runs, four prompts: the first prompt is worse in every run, the second in one; a gain of 0 isn't worse."""


def fresh() -> np.random.Generator:
    return np.random.default_rng(0)


def test_prompt_risk_by_hand() -> None:
    found = prompt_risk(GAINS, fresh())
    assert (found.value, found.n) == (pytest.approx(4 / 11), 3)  # the unknown gain isn't counted
    assert 0 < found.low < 4 / 11 < found.high < 1
    nothing_more = np.vstack([np.column_stack([GAINS, np.full(3, math.nan)]), np.full(5, math.nan)])
    assert prompt_risk(nothing_more, fresh()) == found  # a run and a prompt of which nothing is known


def test_prompt_risk_knows_no_interval_without_runs_and_prompts_to_resample() -> None:
    for gains, value in ((GAINS[:1], 0.25), (GAINS[:, :1], 1.0)):
        found = prompt_risk(gains, fresh())
        assert found.value == value
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    nothing = prompt_risk(np.full((2, 3), math.nan), fresh())
    assert math.isnan(nothing.value)
    assert nothing.n == 0


@pytest.mark.parametrize(("sign", "share"), [(1.0, 0.0), (-1.0, 1.0)])
def test_a_prompt_risk_at_its_ends_is_wilson_s_over_the_fewer_of_runs_and_prompts(sign: float, share: float) -> None:
    """Twelve runs of five prompts, all alike: at worst five independent observations, and not sixty."""
    found = prompt_risk(sign * np.ones((12, 5)), fresh())
    theirs = wilson(int(5 * share), 5)
    assert (found.value, found.low, found.high) == pytest.approx((share, theirs.low, theirs.high), abs=1e-12)


def test_the_order_of_prompts_and_runs_does_not_matter() -> None:
    """To the noise of the bootstrap: 1% of the interval at 40,000 draws."""
    gains = np.random.default_rng(1).normal(0.8, 1.0, (20, 15))
    found, turned = prompt_risk(gains, fresh(), draws=40_000), prompt_risk(gains.T, fresh(), draws=40_000)
    assert turned.value == found.value
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high), abs=0.01 * (found.high - found.low))
    assert prompt_risk(3 * gains, fresh()) == prompt_risk(gains, fresh())  # only signs count


def _two_way_variance(x: np.ndarray) -> float:
    """Of the mean when rows and columns are resampled, exactly: Σ x_ij x_kl E[w_i w_k] E[v_j v_l] / (RP)² − x̄²."""
    rows, columns = x.shape
    w, v = np.eye(rows) + 1 - 1 / rows, np.eye(columns) + 1 - 1 / columns
    return float(np.einsum("ij,kl,ik,jl->", x, x, w, v) / x.size**2 - x.mean() ** 2)


def test_the_prompt_risk_s_bounds_solve_wilson_s_equation_with_the_two_way_variance() -> None:
    """(share − p)² = t²·p(1 − p)/n at both bounds, n from the exact variance; within the noise of 40,000 draws."""
    rng = np.random.default_rng(2)
    gains = 1 + rng.normal(size=(12, 1)) + rng.normal(size=(1, 9)) + 0.3 * rng.normal(size=(12, 9))
    found = prompt_risk(gains, fresh(), draws=40_000)
    n = found.value * (1 - found.value) / _two_way_variance((gains < 0).astype(float))
    t = stats.t.ppf(0.975, 8)
    for bound in (found.low, found.high):
        assert (found.value - bound) ** 2 == pytest.approx(t**2 * bound * (1 - bound) / n, rel=0.03)


def test_the_prompt_risk_s_variance_over_few_draws_has_divisor_n_less_one() -> None:
    """Three draws, repeated by a loop over the same random numbers; the divisor 3 would make n half as large again."""
    gains = np.repeat([[-1.0], [1.0], [1.0], [1.0], [-1.0], [1.0]], 9, axis=1)
    gains[0, 0], gains[1, 1] = 1.0, -1.0
    found, rng = prompt_risk(gains, fresh(), draws=3), fresh()
    rows, columns = rng.integers(6, size=(3, 6)), rng.integers(9, size=(3, 9))
    shares = [np.mean([gains[i, j] < 0 for i in a for j in b]) for a, b in zip(rows, columns, strict=True)]
    n = min(found.value * (1 - found.value) / np.var(shares, ddof=1), gains.size)
    assert n < gains.size / 1.5  # or the cap would hide the divisor
    assert (found.low, found.high) == pytest.approx(wilson_bounds(found.value, n, stats.t.ppf(0.975, 5)), abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "runs_sd", "prompts_sd", "runs"),
    [(0.5, 0.7, 0.7, 30), (1.5, 0.9, 0.2, 12), (1.5, 0.2, 0.9, 30), (2.2, 0.7, 0.7, 12)],
)
def test_the_prompt_risk_s_interval_covers(mean: float, runs_sd: float, prompts_sd: float, runs: int) -> None:
    """Gains with effects of run, of prompt and of both, 24 prompts, 300 studies; true shares of 2% to 33%.

    Over 1,500 studies each it covered 92% to 98%, and the bootstrap's own percentiles 77% to 94%; .87 leaves three
    standard errors at 300 studies.
    """
    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(-mean / math.sqrt(runs_sd**2 + prompts_sd**2 + 0.25))
    hits = 0
    for _ in range(300):
        effects = runs_sd * rng.normal(size=(runs, 1)) + prompts_sd * rng.normal(size=(1, 24))
        found = prompt_risk(mean + effects + 0.5 * rng.normal(size=(runs, 24)), rng, draws=400)
        hits += found.low <= truth <= found.high
    assert 0.87 <= hits / 300 <= 0.995


def test_prompt_risk_differences_are_paired_by_run_and_prompt() -> None:
    other = GAINS.copy()
    other[0, 1:] = -1.0  # three prompts more, in one run
    found = prompt_risk_difference(GAINS, other, fresh())
    assert (found.value, found.n) == (pytest.approx(-3 / 11), 3)
    assert found.low < -3 / 11 < found.high
    assert prompt_risk_difference(other, GAINS, fresh()).value == pytest.approx(3 / 11)
    other[2, 3] = math.nan  # a pair counts where both are known
    assert prompt_risk_difference(GAINS, other, fresh()).value == pytest.approx(-3 / 10)
    none = prompt_risk_difference(GAINS, GAINS, fresh())
    assert none.value == 0.0
    assert math.isnan(none.low)  # resampling equal differences says nothing
    assert math.isnan(prompt_risk_difference(GAINS[:0], other[:0], fresh()).value)


def test_the_difference_s_interval_against_loops() -> None:
    """Resampled one study at a time with another generator; within the noise of 4,000 draws."""
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(1.0, 1.0, (10, 8)), rng.normal(0.2, 1.0, (10, 8))
    x = (ours < 0).astype(float) - (theirs < 0)
    means = [x[rng.integers(10, size=10)][:, rng.integers(8, size=8)].mean() for _ in range(4000)]
    found = prompt_risk_difference(ours, theirs, fresh())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
