"""Hand-worked values, limits, invariances, and SciPy or enumeration as the other opinion."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from surefoot.metrics.intervals import (
    Interval,
    auroc,
    bootstrap_mean,
    brown_forsythe,
    kendall_tau,
    lower_tail,
    pairwise_agreement,
    risk,
    sign_test,
    spearman,
    spread,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 3), (7, 10), (10, 10), (50, 400)])
def test_wilson_against_scipy(k: int, n: int) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
    ours = wilson(k, n)
    assert (ours.value, ours.n) == (k / n, n)
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


def test_wilson_without_trials_knows_nothing() -> None:
    none = wilson(0, 0)
    assert math.isnan(none.value)
    assert (none.low, none.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson(3, 2)


def test_risk_counts_losses_and_leaves_out_unknown_runs() -> None:
    found = risk([-0.1, 0.0, 0.2, float("nan"), -3.0])
    assert (found.value, found.n) == (0.5, 4)  # a run that ends level has not lost


def test_spread_has_ddof_one() -> None:
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2), abs=1e-12)
    assert math.isnan(spread([1.0]))


def test_brown_forsythe_against_the_definition() -> None:
    """An analysis of variance of the distances from each set's median."""
    a, b = [1.0, 2.0, 4.0, 9.0, 3.0], [2.0, 2.5, 2.2, 2.9]
    distances = [np.abs(np.array(x) - np.median(x)) for x in (a, b)]
    assert brown_forsythe(a, b) == pytest.approx(stats.f_oneway(*distances).pvalue, rel=1e-10)
    assert math.isnan(brown_forsythe([1.0], b))
    assert math.isnan(brown_forsythe([0.1, 0.4], [2.0, 9.0]))  # two runs each have one distance, twice
    assert math.isnan(brown_forsythe([0.3, 0.3, 0.3], [0.5, 0.5]))
    assert brown_forsythe([0.5, 0.5, 0.5], [-0.5, 0.25, 0.25]) < 1.0


def test_lower_tail() -> None:
    assert lower_tail(range(20)) == 0.5  # the worst two of twenty
    assert lower_tail([4.0, 2.0]) == 2.0  # at least one
    assert math.isnan(lower_tail([]))


def test_bootstrap_mean_against_the_normal_interval() -> None:
    x = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = bootstrap_mean(x, np.random.default_rng(0))
    half = 1.96 * x.std(ddof=1) / 20
    assert found.value == pytest.approx(x.mean(), abs=1e-12)
    assert found.low == pytest.approx(x.mean() - half, abs=0.01)
    assert found.high == pytest.approx(x.mean() + half, abs=0.01)
    assert bootstrap_mean(x, np.random.default_rng(0)) == found
    single = bootstrap_mean([1.5], np.random.default_rng(0))
    assert single.value == 1.5
    assert math.isnan(single.low)


def test_sign_test_by_enumeration() -> None:
    """All sign patterns of five differences that are at least as lopsided as four to one."""
    patterns = list(itertools.product([-1, 1], repeat=5))
    lopsided = sum(abs(sum(p)) >= 3 for p in patterns) / len(patterns)
    assert sign_test([1.0, 2.0, -0.5, 3.0, 1.0, 0.0]) == pytest.approx(lopsided, abs=1e-12)
    assert math.isnan(sign_test([0.0, 0.0]))


def test_agreement_and_tau_by_hand() -> None:
    margins = np.array([[1.0, 2.0, -1.0], [3.0, 1.0, 1.0], [-1.0, -2.0, -3.0], [2.0, 3.0, -2.0]])
    assert pairwise_agreement(margins) == pytest.approx((4 / 4 + 2 / 4 + 2 / 4) / 3)
    expected = np.mean([stats.kendalltau(margins[:, i], margins[:, j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))])
    assert kendall_tau(margins) == pytest.approx(expected, abs=1e-12)
    assert kendall_tau(margins[:, [2, 0, 1]]) == pytest.approx(kendall_tau(margins), abs=1e-12)
    assert math.isnan(kendall_tau(margins[:, :1]))


def test_auroc_by_counting_pairs() -> None:
    scores, positive = np.array([1.0, 2.0, 2.0, 3.0, 0.5, 2.0]), np.array([0, 1, 0, 1, 0, 1], dtype=bool)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive).value == pytest.approx(np.mean(wins), abs=1e-12)
    assert auroc(-scores, positive).value == pytest.approx(1 - np.mean(wins), abs=1e-12)
    assert auroc(np.exp(scores), positive) == auroc(scores, positive)  # only ranks count
    assert math.isnan(auroc(scores, np.zeros(6, dtype=bool)).value)


def test_auroc_interval_covers() -> None:
    """Shifted normals, whose AUROC is Φ(1/√2): the interval must hold it in about 95 of 100 draws."""
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    hits = 0
    for _ in range(300):
        x = np.concatenate([rng.normal(1, 1, 40), rng.normal(0, 1, 60)])
        found = auroc(x, np.arange(100) < 40)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 300 <= 0.985  # three standard errors of 95% at 300 draws


def test_spearman_against_scipy_and_at_its_ends() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50)
    found = spearman(a, b)
    assert found.value == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found.low < found.value < found.high
    assert spearman(a, np.exp(a)).value == pytest.approx(1.0)
    assert math.isnan(spearman(a, np.ones(50)).value)
    assert spearman(np.append(a, np.nan), np.append(b, 1.0)) == found


def test_spearman_interval_by_hand() -> None:
    """Σd² = 4 of 5 ranks: ρ = .8; Fisher's interval is ± z √((1 + .8²/2)/(5 − 3)) on the atanh scale."""
    found = spearman([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 4.0, 3.0, 5.0])
    assert found.value == pytest.approx(0.8, abs=1e-12)
    assert (math.atanh(found.high) - math.atanh(found.low)) / 2 == pytest.approx(1.959963984540054 * 0.66**0.5)
    assert (found.low, found.high) == pytest.approx((-0.45715, 0.99083), abs=1e-4)


def test_spearman_interval_covers() -> None:
    """ρ = (6/π) asin(r/2) of a bivariate normal with r = .9; without 1 + ρ²/2 it covers 90%, not 95%."""
    rng, truth, hits = np.random.default_rng(4), 6 / math.pi * math.asin(0.45), 0
    for _ in range(1000):
        a, noise = rng.normal(size=(2, 40))
        found = spearman(a, 0.9 * a + math.sqrt(1 - 0.81) * noise)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 1000 <= 0.97  # three standard errors of 95% at 1,000 draws


def test_unknown_figures_are_null_in_json() -> None:
    assert Interval(1.0, math.nan, math.nan, 1).to_dict() == {"value": 1.0, "low": None, "high": None, "n": 1}
