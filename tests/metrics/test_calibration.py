"""Hand-worked values, limits, invariances, and naive loops over pairs as the other opinion."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from surefoot.errors import DataError
from surefoot.maths import ensemble
from surefoot.metrics.calibration import (
    ReliabilityCurve,
    brier,
    choice_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
    negative_log_likelihood_of_margins,
    reliability_curve,
)
from surefoot.metrics.intervals import Interval, wilson

NAN = float("nan")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def near(a: Interval, b: Interval) -> None:
    assert a.n == b.n
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12, nan_ok=True)


# Probabilities and proper scores


def test_probability_is_the_logistic_and_its_average_over_the_variance() -> None:
    assert choice_probabilities([0.0, math.log(3), -math.log(3)]) == pytest.approx([0.5, 0.75, 0.25], abs=1e-15)
    m, v = 1.3, 2.0
    exact = integrate.quad(lambda z: special.expit(m + math.sqrt(v) * z) * stats.norm.pdf(z), -12, 12)[0]
    found = choice_probabilities([m], [v])[0]
    assert found == pytest.approx(exact, abs=0.005)  # MacKay's formula is an approximation; without v it is 0.07 off
    assert found == pytest.approx(special.expit(m / math.sqrt(1 + math.pi / 4)), abs=1e-15)


def test_probability_scales_the_variance_by_the_factor() -> None:
    m, v = random().normal(size=20), random(1).exponential(size=20)
    assert choice_probabilities(m, v, 3.0) == pytest.approx(choice_probabilities(m, 3 * v), abs=1e-15)
    assert np.array_equal(choice_probabilities(m, v, 0.0), choice_probabilities(m))
    assert np.array_equal(choice_probabilities(m, np.zeros(20)), choice_probabilities(m))
    assert choice_probabilities(m, v + 1e12) == pytest.approx(np.full(20, 0.5), abs=1e-5)
    assert choice_probabilities(-m, v) == pytest.approx(1 - choice_probabilities(m, v), abs=1e-15)


def test_likelihood_is_least_at_the_fitted_factor() -> None:
    """`ensemble.fit_variance_factor` minimises the same number; another formula would have another minimum."""
    m, v = random(2).normal(1.0, 3.0, 400), random(3).exponential(4.0, 400)
    best = ensemble.fit_variance_factor(torch.from_numpy(m), torch.from_numpy(v), prior_scale=math.inf)
    assert 0.02 < best < 50
    at = [negative_log_likelihood_of_margins(m, v, best * shift).value for shift in (0.99, 1.0, 1.01)]
    assert at[1] < min(at[0], at[2])


def test_likelihood_and_brier_by_hand() -> None:
    p = [0.5, 0.25, 1.0]
    found, square = negative_log_likelihood(p), brier(p)
    assert (found.value, found.n) == (pytest.approx(math.log(8) / 3, abs=1e-15), 3)
    assert square.value == pytest.approx((0.25 + 0.5625) / 3, abs=1e-15)
    half = 1.959963984540054 * np.std([0.25, 0.5625, 0.0], ddof=1) / math.sqrt(3)
    assert (square.low, square.high) == pytest.approx((square.value - half, square.value + half), abs=1e-12)
    wide = brier(p, confidence=0.99)
    assert wide.high - wide.value == pytest.approx(half * stats.norm.ppf(0.995) / stats.norm.ppf(0.975), abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_intervals_of_a_mean_are_those_of_the_standard_error(count: int) -> None:
    """SciPy's standard error has divisor n − 1; with n instead, the interval of two pairs is 29% too narrow."""
    p = random(6).uniform(0.05, 0.95, count)
    m = special.logit(p)
    for losses, found in (
        (-np.log(p), negative_log_likelihood(p)),
        (-np.log(p), negative_log_likelihood_of_margins(m)),
        ((1 - p) ** 2, brier(p)),
    ):
        expected = stats.norm.interval(0.95, losses.mean(), stats.sem(losses))
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_likelihood_of_margins_agrees_and_goes_on_where_probabilities_end() -> None:
    m, v = random(4).normal(0, 3, 50), random(5).exponential(size=50)
    near(negative_log_likelihood_of_margins(m, v, 2.0), negative_log_likelihood(choice_probabilities(m, v, 2.0)))
    found = negative_log_likelihood_of_margins([-1e6, 1e6])
    assert (found.value, math.isfinite(found.high)) == (5e5, True)
    assert negative_log_likelihood_of_margins([50.0]).value == pytest.approx(math.exp(-50), rel=1e-12)
    impossible = negative_log_likelihood(choice_probabilities([-1e6, 1e6]))
    assert impossible.value == math.inf
    assert math.isnan(impossible.low)


def test_scores_are_least_at_the_true_probability() -> None:
    """Both are proper: with a share q of right labels, giving q to right ones and 1 − q to wrong ones is best."""
    right = np.arange(10) < 7
    for score in (negative_log_likelihood, brier):
        values = [score(np.where(right, q, 1 - q)).value for q in (0.6, 0.7, 0.8)]
        assert values[1] < min(values[0], values[2])


@pytest.mark.parametrize("score", [negative_log_likelihood, brier, negative_log_likelihood_of_margins])
def test_scores_leave_out_nan_and_know_no_interval_of_one(score: Callable[..., Interval]) -> None:
    p = random().uniform(size=30)
    near(score(np.append(p, NAN)), score(p))
    near(score(random(1).permutation(p)), score(p))
    one, none = score([0.5]), score([])
    assert (one.n, math.isnan(one.low), math.isnan(one.value)) == (1, True, False)
    assert (none.n, math.isnan(none.value)) == (0, True)


def test_mean_interval_covers() -> None:
    rng = random(6)
    hits = 0
    for _ in range(400):
        found = brier(rng.uniform(size=60))
        hits += found.low <= 1 / 3 <= found.high
    assert 0.917 <= hits / 400 <= 0.983  # three standard errors of 95% at 400 draws


# Calibration


def naive_bins(p: np.ndarray[Any, Any], bins: int) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, count) by a loop over levels of confidence, from the docstring's words."""
    fold = sorted((max(x, 1 - x), 1.0 if x > 0.5 else 0.5 if x == 0.5 else 0.0) for x in p.tolist())
    held: dict[int, list[tuple[float, float]]] = {}
    ranks = {c: [k for k, (other, _) in enumerate(fold, 1) if other == c] for c, _ in fold}
    for c, right in fold:
        middle = (min(ranks[c]) + max(ranks[c])) / 2
        held.setdefault(math.floor(bins * (middle - 0.5) / len(fold)), []).append((c, right))
    return [(*np.mean(rows, axis=0).tolist(), len(rows)) for _, rows in sorted(held.items())]


def test_reliability_by_hand() -> None:
    curve = reliability_curve([0.9, 0.2, 0.3, 0.6, 0.5, 0.95], bins=3)  # c: .5 .6 | .7 .8 | .9 .95
    assert curve.confidence == pytest.approx((0.55, 0.75, 0.925), abs=1e-12)
    assert [a.value for a in curve.accuracy] == [0.75, 0.0, 1.0]  # p = 0.5 is half right
    assert curve.count == (2, 2, 2)
    assert curve.accuracy[2] == wilson(2, 2)
    assert (curve.accuracy[0].low, curve.accuracy[0].high) == (wilson(1, 2).low, wilson(2, 2).high)


@pytest.mark.parametrize("bins", [1, 3, 10])
@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_reliability_against_a_loop(bins: int, decimals: int) -> None:
    half = random(7).choice([0.5, 0.25, 0.75, 0.625, 1.0, 0.0], 40)  # binary fractions: p and 1 − p tie exactly
    for p in (half, 0.5 + np.round(random(8).uniform(0, 0.5, 101), decimals)):
        curve, expected = reliability_curve(p, bins), naive_bins(p, bins)
        assert curve.count == tuple(n for _, _, n in expected)
        assert curve.confidence == pytest.approx([c for c, _, _ in expected], abs=1e-12)
        assert [a.value for a in curve.accuracy] == pytest.approx([a for _, a, _ in expected], abs=1e-12)
        ece = sum(n * abs(a - c) for c, a, n in expected) / len(p)
        assert expected_calibration_error(p, bins) == pytest.approx(ece, abs=1e-12)


def test_bins_have_equal_mass() -> None:
    p = random(9).permutation(np.linspace(0.51, 0.99, 103))
    assert sorted(reliability_curve(p).count) == [10] * 7 + [11] * 3
    assert reliability_curve(p, bins=1000).count == (1,) * 103  # more bins than pairs


def test_order_of_rows_changes_nothing_even_with_ties() -> None:
    m = random(10).choice([-2.0, -1.0, 0.0, 1.0, 2.0, 40.0], 200)
    p = choice_probabilities(m)
    found, curve = expected_calibration_error(p, 4), reliability_curve(p, 4)
    for seed in range(20):
        shuffled = random(seed).permutation(p)
        assert expected_calibration_error(shuffled, 4) == found  # to the bit
        assert reliability_curve(shuffled, 4) == curve


def test_ties_by_rounding_are_ties() -> None:
    """σ(m) and 1 − σ(−m) differ in the last place. Split there, all right answers would be in one bin."""
    m = np.array([0.3, 1.1, 1.7, 2.3])
    assert (choice_probabilities(m) != 1 - choice_probabilities(-m)).any()
    for one in m:
        p = choice_probabilities(np.repeat([one, -one], 50))
        curve = reliability_curve(p, 10)
        assert (len(curve.count), curve.accuracy[0].value) == (1, 0.5)


def test_calibrated_choices_have_the_error_of_chance_and_others_have_more() -> None:
    """Right with probability c = 0.8 and confidence near it: the error is that of 10 binomial shares."""
    rng, errors = random(11), []
    for _ in range(200):
        c = rng.uniform(0.799, 0.801, 2000)
        errors.append(expected_calibration_error(np.where(rng.uniform(size=2000) < c, c, 1 - c)))
    by_chance = math.sqrt(2 * 0.16 * 10 / (math.pi * 2000))
    assert np.mean(errors) == pytest.approx(by_chance, abs=3 * np.std(errors, ddof=1) / math.sqrt(200) + 1e-4)
    c = np.full(1000, 0.9)
    assert expected_calibration_error(np.where(np.arange(1000) < 600, c, 1 - c)) == pytest.approx(0.3, abs=1e-12)
    assert expected_calibration_error(np.full(10, 0.5)) == 0.0  # says nothing, claims nothing
    assert expected_calibration_error(np.ones(10)) == 0.0


def test_calibration_leaves_out_nan() -> None:
    p = random(12).uniform(size=50)
    assert expected_calibration_error(np.append(p, NAN)) == expected_calibration_error(p)
    assert math.isnan(expected_calibration_error([]))
    assert math.isnan(expected_calibration_error([NAN]))
    assert reliability_curve([]) == ReliabilityCurve((), (), ())


# What is refused, and what JSON gets


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choice_probabilities([[1.0]]), r"margins has shape \(1, 1\)"),
        (lambda: choice_probabilities([1.0], [1.0, 2.0]), "'margins': 1, 'variance': 2"),
        (lambda: choice_probabilities([1.0, math.inf]), "margins in row 1 is inf"),
        (lambda: choice_probabilities([1.0], [math.inf]), "variance in row 0 is inf"),
        (lambda: choice_probabilities([1.0, 2.0], [0.0, -1.0]), "variance in row 1 is -1"),
        (lambda: choice_probabilities([1.0], [1.0], -0.5), "factor is -0.5"),
        (lambda: choice_probabilities([1.0], [1.0], NAN), "factor is nan"),
        (lambda: negative_log_likelihood([0.5, 1.5]), "p in row 1 is 1.5"),
        (lambda: brier([-0.1]), "p in row 0 is -0.1"),
        (lambda: brier([[0.5]]), r"p has shape \(1, 1\)"),
        (lambda: reliability_curve([0.5], 0), "bins is 0"),
        (lambda: expected_calibration_error([2.0]), "p in row 0 is 2"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_unknown_rows_stay_unknown_in_probabilities() -> None:
    found = choice_probabilities([NAN, 0.0, 1.0], [1.0, 0.0, NAN])
    assert np.array_equal(found, [NAN, 0.5, NAN], equal_nan=True)
    assert negative_log_likelihood_of_margins([NAN, 0.0, 1.0], [1.0, 0.0, NAN]).n == 1


def test_records_are_json() -> None:
    found = json.loads(json.dumps(reliability_curve([0.9, 0.2]).to_dict(), allow_nan=False))
    assert found["count"] == [1, 1]
