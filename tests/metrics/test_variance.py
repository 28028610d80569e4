"""Does the variance tell mistakes: hand-worked values, limits, invariances, and naive loops over pairs."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from surefoot.errors import DataError
from surefoot.metrics.intervals import Interval, auroc, placements, spearman
from surefoot.metrics.variance import (
    CoefficientOfVariation,
    RiskCoverage,
    auroc_difference,
    coefficient_of_variation,
    effective_members,
    length_correlation,
    risk_coverage,
    split_sizes,
)

NAN = float("nan")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def near(a: Interval, b: Interval) -> None:
    assert a.n == b.n
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12, nan_ok=True)


# Selective prediction


def naive_area(uncertainty: list[float], wrong: list[bool]) -> float:
    """Mean over all orders that the uncertainty allows of (1/n) Σ risk(k)."""
    areas = []
    for order in itertools.permutations(range(len(wrong))):
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order)):
            risks = [np.mean([wrong[i] for i in order[:k]]) for k in range(1, len(order) + 1)]
            areas.append(np.mean(risks))
    return float(np.mean(areas))


@pytest.mark.parametrize("uncertainty", [[1, 2, 3, 4, 5, 6], [1, 1, 2, 2, 2, 3], [0] * 6, [3, 1, 2, math.inf, 1, 2]])
def test_area_under_the_risk_by_enumeration(uncertainty: list[float]) -> None:
    wrong = [False, True, False, True, True, False]
    found = risk_coverage(uncertainty, wrong)
    assert found.area == pytest.approx(naive_area(list(uncertainty), wrong), abs=1e-12)
    assert found.best_area == pytest.approx(naive_area([float(w) for w in range(6)], sorted(wrong)), abs=1e-12)
    assert found.random_area == 0.5
    assert found.excess == found.area - found.best_area


def test_risk_by_hand_with_ties_taken_together() -> None:
    found = risk_coverage([0.3, 0.1, 0.3, 0.2], [True, False, False, True])
    assert found.coverage.tolist() == [0.25, 0.5, 1.0]
    assert found.risk.tolist() == [0.0, 0.5, 0.5]


def test_limits_of_the_area() -> None:
    wrong = random(13).uniform(size=500) < 0.3
    rate = float(wrong.mean())
    perfect, useless, worst = (risk_coverage(u, wrong) for u in (wrong, np.ones(500), ~wrong))
    assert perfect.excess == pytest.approx(0.0, abs=1e-12)  # two levels: the order inside them costs nothing
    assert useless.area == pytest.approx(rate, abs=1e-12)
    assert useless.risk.tolist() == [rate]
    assert worst.area > rate > perfect.area
    # With mistakes last nothing is lost, and for large n the area has a closed form.
    ordered = risk_coverage(np.arange(500), np.sort(wrong))
    assert ordered.excess == pytest.approx(0.0, abs=1e-12)
    assert ordered.best_area == pytest.approx(rate + (1 - rate) * math.log(1 - rate), abs=1e-3)
    assert risk_coverage([1.0, 2.0], [False, False]).area == 0.0
    assert risk_coverage([1.0, 2.0], [True, True]).area == 1.0


def test_area_knows_ranks_alone_and_no_order_of_rows() -> None:
    u, wrong = np.round(random(14).uniform(size=80), 1), random(15).uniform(size=80) < 0.4
    found = risk_coverage(u, wrong)
    order = random(16).permutation(80)
    for other in (risk_coverage(u[order], wrong[order]), risk_coverage(np.exp(3 * u), wrong)):
        assert other.area == found.area
        assert np.array_equal(other.risk, found.risk)
    with_nan = risk_coverage(np.append(u, [NAN, 0.3]), [*wrong.tolist(), True, None])
    assert with_nan.area == found.area


def test_thinned_keeps_the_ends_and_the_areas() -> None:
    u, wrong = random(17).uniform(size=5000), random(18).uniform(size=5000) < 0.4
    found = risk_coverage(u, wrong)
    thin = found.thinned(50)
    assert len(thin.coverage) == len(thin.risk) == 50
    assert (thin.coverage[0], thin.coverage[-1], thin.risk[-1]) == (found.coverage[0], 1.0, wrong.mean())
    assert np.diff(thin.coverage).max() < 1 / 48
    assert set(zip(thin.coverage, thin.risk, strict=True)) <= set(zip(found.coverage, found.risk, strict=True))
    assert (thin.area, thin.excess) == (found.area, found.excess)
    assert found.thinned(5000) is found
    assert len(risk_coverage(np.append(np.zeros(98), [1, 2]), np.arange(100) < 9).thinned(2).risk) == 2
    with pytest.raises(DataError, match="points is 1"):
        found.thinned(1)


# AUROCs


def auroc_of_old(scores: Any, positive: Any) -> Interval:
    """`statistics.auroc` as it was before `placements` left it."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    hit, miss = x[y], x[~y]
    all_ranks, hit_ranks, miss_ranks = (stats.rankdata(values) for values in (np.concatenate([hit, miss]), hit, miss))
    above = (all_ranks[: len(hit)] - hit_ranks) / len(miss)
    below = 1 - (all_ranks[len(hit) :] - miss_ranks) / len(hit)
    area = float(above.mean())
    variance = sum(v.var(ddof=1) / len(v) for v in (above, below) if len(v) > 1)
    half = float(stats.norm.ppf(0.975)) * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return Interval(area, 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit)), len(x))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_what_it_was_to_the_bit(seed: int) -> None:
    x, y = np.round(random(seed).normal(size=200), seed), random(seed + 50).uniform(size=200) < 0.3
    assert auroc(x, y) == auroc_of_old(x, y)


def test_placements_by_counting() -> None:
    hit, miss = np.array([1.0, 2.0, 5.0]), np.array([0.0, 2.0, 3.0, 1.0])
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in miss] for a in hit])
    above, below = placements(hit, miss)
    assert above == pytest.approx(wins.mean(axis=1), abs=1e-15)
    assert below == pytest.approx(wins.mean(axis=0), abs=1e-15)


def naive_delong(first: Any, second: Any, positive: Any) -> tuple[float, float]:
    """Difference and its standard error from the kernel ψ in loops and 2 × 2 covariances (DeLong et al. 1988)."""
    areas, by_hit, by_miss = [], [], []
    for scores in (first, second):
        hits = [s for s, y in zip(scores, positive, strict=True) if y]
        misses = [s for s, y in zip(scores, positive, strict=True) if not y]
        psi = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in misses] for a in hits]
        by_hit.append([sum(row) / len(misses) for row in psi])
        by_miss.append([sum(row[j] for row in psi) / len(hits) for j in range(len(misses))])
        areas.append(sum(map(sum, psi)) / len(hits) / len(misses))
    covariance = np.zeros((2, 2))
    for v in (by_hit, by_miss):
        for a, b in itertools.product(range(2), repeat=2):
            cross = sum((x - areas[a]) * (y - areas[b]) for x, y in zip(v[a], v[b], strict=True))
            covariance[a, b] += cross / (len(v[a]) - 1) / len(v[a])
    return areas[0] - areas[1], math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_difference_against_delong_in_loops(decimals: int) -> None:
    rng = random(decimals)
    y = rng.uniform(size=70) < 0.4
    a = y + rng.normal(size=70)
    b = np.round(a + rng.normal(size=70), decimals)
    a = np.round(a, decimals)
    found, (value, error) = auroc_difference(a, b, y), naive_delong(a, b, y)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.value == auroc(a, y).value - auroc(b, y).value
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * error, abs=1e-12)
    assert found.high + found.low == pytest.approx(2 * value, abs=1e-12)


def test_difference_changes_sign_with_the_order_and_knows_ranks_alone() -> None:
    rng = random(20)
    y, a, b = rng.uniform(size=60) < 0.5, rng.normal(size=60), rng.normal(size=60)
    found, swapped = auroc_difference(a, b, y), auroc_difference(b, a, y)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.value, -found.high, -found.low), abs=1e-12
    )
    near(auroc_difference(np.exp(a), b**3, y), found)
    near(auroc_difference(-b, -a, y), found)
    order = rng.permutation(60)
    near(auroc_difference(a[order], b[order], y[order]), found)
    near(
        auroc_difference(np.append(a, [NAN, 1.0, 1.0]), np.append(b, [1.0, NAN, 1.0]), [*y.tolist(), 1, 0, NAN]), found
    )
    assert auroc_difference(a, b, y, confidence=0.5).high < found.high


def test_difference_at_its_ends() -> None:
    y = np.arange(8) < 4
    a = random(21).normal(size=8)
    assert auroc_difference(a, 2 * a + 1, y) == Interval(0.0, 0.0, 0.0, 8)  # one ranking
    perfect = auroc_difference(-np.arange(8), -np.array([1, 0, 3, 2, 5, 4, 7, 6]), y)
    assert (perfect.value, math.isnan(perfect.low)) == (0.0, True)  # two perfect rankings that differ
    for labels in (np.zeros(8, dtype=bool), np.ones(8, dtype=bool)):
        none = auroc_difference(a, -a, labels)
        assert (math.isnan(none.value), math.isnan(none.low), none.n) == (True, True, 8)
    lone = auroc_difference(a, -a, np.arange(8) < 1)
    assert (math.isnan(lone.value), math.isnan(lone.high)) == (False, True)


def test_difference_covers_and_pairing_narrows_it() -> None:
    """Two scores that share most of their noise: the truth is inside in about 95 of 100 draws."""
    rng, hits, widths, unpaired = random(22), 0, [], []
    y = np.arange(150) < 70
    truth = stats.norm.cdf(1 / math.sqrt(2 * 1.25)) - stats.norm.cdf(0.8 / math.sqrt(2 * 1.25))
    for _ in range(300):
        shared = rng.normal(size=150)
        a, b = (shift * y + shared + 0.5 * rng.normal(size=150) for shift in (1.0, 0.8))
        found = auroc_difference(a, b, y)
        hits += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        unpaired.append(math.hypot(*(i.high - i.low for i in (auroc(a, y), auroc(b, y)))))
    assert 0.912 <= hits / 300 <= 0.988  # three standard errors of 95% at 300 draws
    assert np.mean(widths) < 0.6 * np.mean(unpaired)


# Members


def test_effective_members_by_hand_and_against_a_loop() -> None:
    assert effective_members([[1, 1], [1, 1], [1, 0], [0, 0]]) == pytest.approx(2 / (1 + 1 / math.sqrt(3)), abs=1e-12)
    wrong = random(23).uniform(size=(300, 6)) < random(24).uniform(0.1, 0.9, (300, 1))
    rhos = [np.corrcoef(wrong[:, i], wrong[:, j])[0, 1] for i in range(6) for j in range(i)]
    assert effective_members(wrong) == pytest.approx(6 / (1 + 5 * np.mean(rhos)), abs=1e-9)
    order = random(25).permutation(6)
    assert effective_members(wrong[:, order]) == pytest.approx(effective_members(wrong), abs=1e-9)
    assert effective_members(wrong[::-1]) == pytest.approx(effective_members(wrong), abs=1e-9)


def test_effective_members_are_what_the_mean_of_mistakes_varies_by() -> None:
    wrong = random(26).uniform(size=(500, 5)) < random(27).uniform(0.0, 1.0, (500, 1))
    standard = (wrong - wrong.mean(axis=0)) / wrong.std(axis=0, ddof=1)
    assert effective_members(wrong) == pytest.approx(1 / standard.mean(axis=1).var(ddof=1), abs=1e-9)


def test_limits_of_effective_members() -> None:
    one = random(28).uniform(size=100) < 0.3
    assert effective_members(np.stack([one] * 4, axis=1)) == pytest.approx(1.0, abs=1e-9)
    every = np.array(list(itertools.product([0, 1], repeat=4)))
    assert effective_members(every) == pytest.approx(4.0, abs=1e-9)
    assert effective_members(np.stack([one, ~one], axis=1)) == math.inf
    opposed = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert effective_members(opposed) > 3  # negative correlation is not cut
    never, always = np.zeros(100, dtype=bool), np.ones(100, dtype=bool)
    two = np.stack([one, random(29).uniform(size=100) < 0.3], axis=1)
    assert effective_members(np.column_stack([two, never, always])) == effective_members(two)
    for undefined in (np.column_stack([one, never]), one[:, None], np.empty((0, 3))):
        assert math.isnan(effective_members(undefined))
    holed = np.vstack([two.astype(float), [[NAN, 1.0]]])
    assert effective_members(holed) == effective_members(two)


def test_split_sizes_by_hand_and_against_a_loop() -> None:
    m = np.array([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, -1, 1, -1], [0, 0, 1, -1], [0, 0, 0, 0], [-1, -1, -1, -2]])
    assert split_sizes(m) == (3, 2, 1)
    assert split_sizes([[1.0, 1.0, 1.0, 0.0]]) == (1, 0, 0)  # a margin of 0 takes neither side
    m = random(30).normal(size=(200, 7))
    expected = [sum(min((row > 0).sum(), (row < 0).sum()) == k for row in m) for k in range(4)]
    assert split_sizes(m) == tuple(expected)
    assert split_sizes(m[:, ::-1]) == split_sizes(-m[::-1]) == split_sizes(m)
    assert split_sizes(np.vstack([m, np.full(7, NAN)])) == split_sizes(m)
    assert split_sizes(m[:, :1]) == (200,)
    assert split_sizes(np.empty((0, 5))) == (0, 0, 0)


# Weights and lengths


def test_coefficient_of_variation_against_a_loop() -> None:
    rng = random(31)
    x, groups = rng.exponential(size=90), rng.integers(20, 50, 90)
    found = coefficient_of_variation(x, groups)
    sets = [x[groups == g] for g in sorted(set(groups.tolist()))]
    assert any(len(s) == 1 for s in sets)  # counts between groups, says nothing within
    pooled = sum(s.var(ddof=1) * (len(s) - 1) for s in sets if len(s) > 1) / sum(len(s) - 1 for s in sets)
    assert found.overall == pytest.approx(x.std(ddof=1) / x.mean(), abs=1e-12)
    assert found.within == pytest.approx(math.sqrt(pooled) / x.mean(), abs=1e-12)
    assert found.between == pytest.approx(np.std([s.mean() for s in sets], ddof=1) / x.mean(), abs=1e-12)
    order = rng.permutation(90)
    names = np.array([f"prompt {g}" for g in groups])
    for other in (
        coefficient_of_variation(x[order], groups[order]),
        coefficient_of_variation(7 * x, names),
        coefficient_of_variation(-x, groups),
        coefficient_of_variation(np.append(x, NAN), np.append(groups, 99)),
    ):
        assert (other.overall, other.within, other.between) == pytest.approx(
            (found.overall, found.within, found.between), abs=1e-12
        )


def test_limits_of_the_coefficient_of_variation() -> None:
    assert coefficient_of_variation([2.0] * 4, [0, 0, 1, 1]) == CoefficientOfVariation(0.0, 0.0, 0.0)
    within = coefficient_of_variation([1.0, 3.0, 1.0, 3.0], [0, 0, 1, 1])
    assert (within.within, within.between) == (pytest.approx(math.sqrt(2) / 2, abs=1e-12), 0.0)
    between = coefficient_of_variation([1.0, 1.0, 3.0, 3.0], [0, 0, 1, 1])
    assert (between.within, between.between) == (0.0, pytest.approx(math.sqrt(2) / 2, abs=1e-12))
    unknown = coefficient_of_variation([1.0, 3.0])
    assert unknown.to_dict() == {"overall": pytest.approx(math.sqrt(2) / 2), "within": None, "between": None}
    lone = coefficient_of_variation([1.0, 3.0], [0, 1])
    assert (math.isnan(lone.within), lone.between) == (True, pytest.approx(math.sqrt(2) / 2, abs=1e-12))
    one_group = coefficient_of_variation([1.0, 3.0], [0, 0])
    assert (one_group.within, math.isnan(one_group.between)) == (pytest.approx(math.sqrt(2) / 2, abs=1e-12), True)
    for nothing in ([], [1.0], [NAN, 1.0], [-1.0, 1.0]):
        assert math.isnan(coefficient_of_variation(nothing).overall)


def test_length_correlation_without_groups_is_spearman() -> None:
    x, lengths = random(32).normal(size=40), random(33).integers(5, 60, 40)
    assert length_correlation(x, lengths) == spearman(x, lengths)
    assert length_correlation(np.append(x, NAN), np.append(lengths, 9)) == spearman(x, lengths)


def test_length_correlation_within_groups_against_a_loop() -> None:
    rng = random(34)
    groups = rng.integers(0, 12, 80)
    x, lengths = rng.normal(size=80), rng.integers(5, 60, 80)
    found = length_correlation(x, lengths, groups)
    rows = [i for i in range(80) if (groups == groups[i]).sum() > 1]
    a, b = ([v[i] - v[groups == groups[i]].mean() for i in rows] for v in (x, lengths.astype(float)))
    assert found.n == len(rows)
    assert found.value == pytest.approx(stats.spearmanr(np.round(a, 9), np.round(b, 9)).statistic, abs=1e-12)
    freedom = len(rows) - len(set(groups[rows].tolist())) - 2
    half = 1.959963984540054 * math.sqrt((1 + found.value**2 / 2) / freedom)
    expected = [math.tanh(math.atanh(found.value) + side * half) for side in (-1, 1)]
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(80)
    near(length_correlation(x[order], lengths[order], groups[order]), found)
    near(length_correlation(x + 10.0 * groups, lengths + 1000 * groups, groups), found)  # a constant per prompt
    near(length_correlation(np.append(x, [NAN, 3.0]), np.append(lengths, [1, 2]), np.append(groups, [99, 99])), found)


def test_length_correlation_sees_through_prompts() -> None:
    """Over prompts longer is better, within a prompt shorter is (Simpson's paradox)."""
    groups = np.repeat(np.arange(30), 4)
    lengths = 10 * groups + np.tile(np.arange(4), 30)
    values = groups - 0.01 * np.tile(np.arange(4), 30)
    assert length_correlation(values, lengths).value > 0.99
    assert length_correlation(values, lengths, groups).value == pytest.approx(-1.0, abs=1e-12)


def test_rounding_ranks_nothing() -> None:
    """The mean of three 0.1 is not 0.1, but centred values of equal values are equal."""
    groups = np.repeat(np.arange(3), 3)
    constant = np.repeat([0.1, 0.3, 0.7], 3)
    assert (constant.reshape(3, 3).mean(axis=1) != constant[::3]).any()
    assert math.isnan(length_correlation(constant, np.arange(9), groups).value)
    assert math.isnan(length_correlation(np.arange(9), constant, groups).value)


def test_length_correlation_of_too_little() -> None:
    for groups in (None, [0, 0, 1]):
        assert math.isnan(length_correlation([1.0, 2.0, 4.0], [1, 2, 3], groups).value)
    alone = length_correlation([1.0, 2.0, 4.0, 3.0, 1.0], [1, 2, 3, 1, 9], [0, 1, 2, 3, 4])
    assert (math.isnan(alone.value), alone.n) == (True, 0)
    few = length_correlation([1.0, 2.0, 4.0, 3.0], [1, 4, 3, 5], [0, 0, 1, 1])
    assert (math.isnan(few.value), few.n, math.isnan(few.low)) == (False, 4, True)  # n − G − 2 = 0
    assert length_correlation([], [], []).n == 0


def test_length_interval_covers_within_pairs() -> None:
    """Two completions a prompt mirror each other, so there is half the information: n alone covers 85%."""
    rng, hits = random(35), 0
    groups = np.repeat(np.arange(60), 2)
    for _ in range(300):
        found = length_correlation(rng.normal(size=120), rng.normal(size=120), groups)
        hits += found.low <= 0 <= found.high
    assert 0.912 <= hits / 300 <= 0.988  # three standard errors of 95% at 300 draws


# What is refused, and what JSON gets


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: risk_coverage([1.0, 2.0], [True]), "'uncertainty': 2, 'wrong': 1"),
        (lambda: risk_coverage([1.0], [0.5]), "wrong holds 0.5"),
        (lambda: auroc_difference([1.0], [1.0, 2.0], [True, False]), "'first': 1, 'second': 2, 'positive': 2"),
        (lambda: auroc_difference([1.0], [1.0], [2]), "positive holds 2"),
        (lambda: effective_members([True, False]), r"wrong has shape \(2,\)"),
        (lambda: effective_members([[1.0, -1.0]]), "wrong holds -1"),
        (lambda: split_sizes(np.empty((3, 0))), r"margins has shape \(3, 0\)"),
        (lambda: coefficient_of_variation([1.0, math.inf]), "values in row 1 is inf"),
        (lambda: coefficient_of_variation([1.0], [1, 2]), r"groups has shape \(2,\)"),
        (lambda: coefficient_of_variation([1.0, 2.0], [1.0, NAN]), "groups is NaN in row 1"),
        (lambda: length_correlation([1.0], [1, 2]), "'values': 1, 'lengths': 2"),
        (lambda: length_correlation([1.0], [math.inf]), "lengths in row 0 is inf"),
        (lambda: length_correlation([1.0], [1], [1, 2]), r"groups has shape \(2,\)"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_records_are_json() -> None:
    found = json.loads(json.dumps(risk_coverage([1.0, 2.0], [False, True]).to_dict(), allow_nan=False))
    assert found["risk"] == [0.0, 0.5]
    assert found["excess"] == 0.0
    empty: RiskCoverage = risk_coverage([], [])
    assert empty.to_dict() == {
        "coverage": [], "risk": [], "area": None, "random_area": None, "best_area": None, "excess": None,
    }  # fmt: skip
