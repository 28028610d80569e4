"""Closed-form risks against their matrix form, simulation with its error, and Cauchy-Schwarz."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from surefoot.errors import DataError
from surefoot.theory.gaussian_risk import (
    expected_gain,
    expected_gap,
    full_margin,
    gain,
    log_risk,
    margin,
    over_optimisation_gap,
    risk,
    vanilla_margin,
    variance_aware_margin,
)
from surefoot.theory.quadratic import project, update
from tests.maths.oracles import random_problem

SEEDS = st.integers(0, 10_000)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def problem(seed: int, problems: int = 4, actions: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(true reward, variance)."""
    reward, _, variance = random_problem(seed, problems, actions)
    return reward, variance


def covariance(seed: int, problems: int = 4, actions: int = 6) -> torch.Tensor:
    """(problems, actions, actions) positive definite."""
    stream = torch.Generator().manual_seed(seed)
    root = torch.randn(problems, actions, 2 * actions, generator=stream, dtype=torch.float64)
    return root @ root.transpose(1, 2) / actions


def test_by_hand() -> None:
    """r* = (−1, 0, 1), Σ = diag(1, 4, 1): vanilla 2/√2; aware (1 + 1)^½, since the weighted mean of r* is 0."""
    reward = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    variance = torch.tensor([[1.0, 4.0, 1.0]], dtype=torch.float64)
    assert float(vanilla_margin(reward, variance)) == pytest.approx(math.sqrt(2))
    assert float(variance_aware_margin(reward, variance)) == pytest.approx(math.sqrt(2))
    uneven = torch.tensor([[4.0, 1.0, 1.0]], dtype=torch.float64)
    # vanilla: 2/√5. Aware: weights (1/4, 1, 1), mean 1/3, Σ (r − 1/3)²/σ² = 16/36 + 1/9 + 4/9 = 1.
    assert float(vanilla_margin(reward, uneven)) == pytest.approx(2 / math.sqrt(5))
    assert float(variance_aware_margin(reward, uneven)) == pytest.approx(1.0)
    assert float(risk(variance_aware_margin(reward, uneven))) == pytest.approx(float(stats.norm.cdf(-1.0)), rel=1e-14)


def test_against_the_matrices_of_the_theorem() -> None:
    reward, variance = problem(1)
    full = covariance(1)
    p = np.eye(6) - np.ones((6, 6)) / 6
    for i in range(4):
        r, s = reward[i].numpy(), np.diag(variance[i].numpy())
        inverse = np.linalg.inv(s)
        m = inverse - inverse @ np.ones((6, 6)) @ inverse / inverse.sum()
        assert float(vanilla_margin(reward, variance)[i]) == pytest.approx((r @ p @ r) / math.sqrt(r @ p @ s @ p @ r))
        assert float(variance_aware_margin(reward, variance)[i]) == pytest.approx(math.sqrt(r @ m @ r))
        sigma = full[i].numpy()
        wrong = (r @ m @ r) / math.sqrt(r @ m @ sigma @ m @ r)
        assert float(margin(reward, variance, full)[i]) == pytest.approx(wrong, rel=1e-12)
        best = np.linalg.inv(sigma)
        best = best - best @ np.ones((6, 6)) @ best / best.sum()
        assert float(full_margin(reward, full)[i]) == pytest.approx(math.sqrt(r @ best @ r), rel=1e-10)


@pytest.mark.parametrize("aware", [False, True])
def test_against_simulation(aware: bool) -> None:
    """200,000 draws of R ~ N(r*, Σ) with full Σ: within 4.5 standard errors of Φ(−z)."""
    reward, variance = problem(2, problems=1)
    full, draws = covariance(2, problems=1), 200_000
    metric = variance if aware else torch.ones_like(variance)
    closed = float(risk(margin(reward, metric, full)))
    noise = torch.randn(draws, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = reward + noise @ torch.linalg.cholesky(full[0]).T
    bad = (project(seen, metric.expand_as(seen)) @ reward[0] <= 0).double().mean()
    assert 0.05 < closed < 0.45
    assert abs(float(bad) - closed) < 4.5 * math.sqrt(closed * (1 - closed) / draws)


@given(SEEDS, st.integers(2, 40), st.floats(0.01, 5))
def test_variance_aware_is_never_riskier(seed: int, actions: int, spread: float) -> None:
    """The theorem, to rounding; and knowing the full Σ is never worse than knowing any diagonal."""
    reward, _, variance = random_problem(seed, 4, actions, spread)
    aware, vanilla = variance_aware_margin(reward, variance), vanilla_margin(reward, variance)
    assert bool((aware >= vanilla * (1 - 1e-12)).all())
    full = covariance(seed, 4, actions)
    assert bool((full_margin(reward, full) >= margin(reward, variance, full) * (1 - 1e-9)).all())


@given(SEEDS, st.floats(0.1, 10))
def test_equal_variances_make_the_methods_one(seed: int, level: float) -> None:
    reward, _ = problem(seed)
    variance = torch.full_like(reward, level)
    close(variance_aware_margin(reward, variance), vanilla_margin(reward, variance), rtol=1e-10)


def test_a_diagonal_covariance_is_the_diagonal() -> None:
    reward, variance = problem(3)
    close(margin(reward, variance, torch.diag_embed(variance)), variance_aware_margin(reward, variance))
    close(full_margin(reward, torch.diag_embed(variance)), variance_aware_margin(reward, variance))


@given(SEEDS, st.floats(-1e3, 1e3), st.permutations(range(6)), st.floats(1e-6, 1e6))
def test_constants_order_and_scale(seed: int, constant: float, order: list[int], factor: float) -> None:
    """A constant and the order of the actions change nothing; Σ times c² divides z by c."""
    reward, variance = problem(seed)
    for z in (vanilla_margin, variance_aware_margin):
        before = z(reward, variance)
        close(z(reward + constant, variance), before, rtol=1e-8)
        close(z(reward[:, order], variance[:, order]), before)
        close(z(reward, variance * factor**2), before / factor, rtol=1e-9)


@given(SEEDS)
def test_a_common_error_of_all_actions_changes_nothing(seed: int) -> None:
    """Σ + c·11ᵀ shifts all rewards together, and updates sum to zero."""
    reward, variance = problem(seed)
    full = covariance(seed)
    close(margin(reward, variance, full + 7.0), margin(reward, variance, full), rtol=1e-8)
    close(full_margin(reward, full + 7.0), full_margin(reward, full), rtol=1e-8)


def test_merging_two_identical_actions() -> None:
    """Two actions of one reward with independent errors of variance 2s count, for the aware method, as one of s."""
    reward, variance = problem(4)
    split = [torch.cat([x, x[:, -1:]], dim=1) for x in (reward, variance)]
    split[1][:, -2:] *= 2
    close(variance_aware_margin(*split), variance_aware_margin(reward, variance))


def test_variances_over_twelve_orders_of_magnitude() -> None:
    from fractions import Fraction

    variance = torch.logspace(-6, 6, 13, dtype=torch.float64)[None]
    reward = torch.randn(1, 13, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    r, v = ([Fraction(float(x)) for x in row[0]] for row in (reward, variance))
    centre = sum(a / b for a, b in zip(r, v, strict=True)) / sum(1 / b for b in v)
    square = sum((a - centre) ** 2 / b for a, b in zip(r, v, strict=True))
    assert float(variance_aware_margin(reward, variance)) == pytest.approx(math.sqrt(square), rel=1e-11)


def test_equal_rewards_have_no_margin_and_even_odds() -> None:
    reward, variance = torch.full((1, 1000), 2.0, dtype=torch.float64), problem(5, 1, 1000)[1]
    assert float(vanilla_margin(reward, variance)) == float(variance_aware_margin(reward, variance)) == 0.0
    assert float(risk(vanilla_margin(reward, variance))) == 0.5


def test_tiny_risks_keep_their_logarithm() -> None:
    z = torch.tensor(50.0, dtype=torch.float64)
    assert float(risk(z)) == 0.0
    assert float(log_risk(z)) == pytest.approx(float(stats.norm.logcdf(-50.0)), rel=1e-10)


@pytest.mark.parametrize("aware", [False, True])
def test_expected_gain_and_gap_against_simulation(aware: bool) -> None:
    """E[r*·d] and E[(R − r*)·d], each within 4.5 standard errors over 100,000 draws."""
    reward, variance = problem(7, problems=1)
    metric, beta, draws = variance if aware else torch.ones_like(variance), 2.0, 100_000
    noise = torch.randn(draws, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = reward + noise * variance.sqrt()
    d = update(seen, metric.expand_as(seen), beta)
    for got, want in (
        (gain(reward.expand_as(d), d), expected_gain(reward, metric, beta)),
        (over_optimisation_gap(seen, reward.expand_as(d), d), expected_gap(metric, variance, beta)),
    ):
        error = float(got.std(correction=1)) / math.sqrt(draws)
        assert abs(float(got.mean() - want)) < 4.5 * error
        assert float(want) > 10 * error


def test_the_gap_of_the_aware_update_counts_actions() -> None:
    """tr(MΣ) = n − 1, whatever Σ; and vanilla's is the trace of PΣ."""
    variance = problem(8)[1]
    close(expected_gap(variance, variance, 0.5), torch.full((4,), 10.0, dtype=torch.float64))
    close(expected_gap(torch.ones_like(variance), variance, 1.0), variance.sum(dim=1) * 5 / 6)


def test_a_singular_covariance_is_named() -> None:
    reward, _ = problem(9)
    full = covariance(9)
    full[2] = 0.0
    with pytest.raises(DataError, match="the covariance of problem 2 isn't positive definite"):
        full_margin(reward, full)
