"""β for a KL budget: met to rounding, agreeing with scipy's root finder, the first crossing, or a clear error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from surefoot.errors import ConfigError
from surefoot.theory.budgets import optimum_at_kl
from surefoot.theory.exact import optimum, weighted_optimum
from tests.maths.oracles import random_problem

SEEDS = st.integers(0, 10_000)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_by_hand() -> None:
    """π* = (1/4, 3/4) from (1/2, 1/2) with r = (0, ln 3) has β = 1 and KL = ln 2 + (1/4)ln(1/4) + (3/4)ln(3/4)."""
    half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    budget = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    found = optimum_at_kl(torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), half, None, budget)
    assert float(found.beta) == pytest.approx(1.0, rel=1e-11)
    close(found.policy, torch.tensor([[0.25, 0.75]], dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(1e-6, 1.0))
def test_the_budget_is_met(seed: int, budget: float) -> None:
    reward, log_ref, weight = random_problem(seed)
    for w in (None, weight):
        found = optimum_at_kl(reward, log_ref, w, budget, unreachable="nan")
        reached = ~found.beta.isnan()
        assert bool(reached.any())
        close(found.kl[reached], torch.full_like(found.kl[reached], budget), rtol=1e-10, atol=1e-14)
        again = optimum(reward[reached], log_ref[reached], None if w is None else w[reached], found.beta[reached])
        close(again.log_ratio, found.log_ratio[reached])


@pytest.mark.parametrize("weighted", [False, True])
def test_against_brentq(weighted: bool) -> None:
    reward, log_ref, weight = random_problem(11, problems=10)
    chosen = weight if weighted else None
    found = optimum_at_kl(reward, log_ref, chosen, 0.2)
    for i in range(10):
        row = [x[i : i + 1] for x in (reward, log_ref, weight)]

        def excess(log_beta: float, row: list[torch.Tensor] = row) -> float:
            return float(optimum(row[0], row[1], row[2] if weighted else None, math.exp(log_beta)).kl) - 0.2

        near = math.log(float(found.beta[i]))
        beta = math.exp(optimize.brentq(excess, near - 0.5, near + 0.5, xtol=1e-14, rtol=1e-14))
        assert float(found.beta[i]) == pytest.approx(beta, rel=1e-8)


def test_the_largest_beta_is_taken() -> None:
    """With weights KL need not fall with β. No larger β on a fine grid exceeds the budget."""
    reward, log_ref, weight = random_problem(12, problems=30, spread=2.0)
    found = optimum_at_kl(reward, log_ref, weight, 0.2)
    for factor in torch.logspace(1e-3, 4, 60, dtype=torch.float64):
        assert bool((weighted_optimum(reward, log_ref, weight, found.beta * factor).kl <= 0.2).all())


def test_kl_is_not_monotone_with_weights() -> None:
    """The reason for "largest": an almost certain, rare action is taken first, and left for a common, better one."""
    log_ref = torch.tensor([[1e-4, 0.5 - 1e-4, 0.5]], dtype=torch.float64).log()
    reward = torch.tensor([[0.9, 1.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[0.01, 1.0, 1.0]], dtype=torch.float64)
    betas = torch.logspace(-3, 1, 200, dtype=torch.float64)
    rows = [x.expand(200, 3) for x in (reward, log_ref, weight)]
    kl = weighted_optimum(rows[0], rows[1], rows[2], betas).kl
    assert float(kl[0]) == pytest.approx(-math.log(0.5 - 1e-4), rel=1e-6)
    assert float(kl.max()) > 2
    assert float(kl[-1]) < 0.05


def test_literal_form_meets_a_budget_above_its_own_least() -> None:
    reward, log_ref, weight = random_problem(13, problems=8, spread=0.3)
    found = optimum_at_kl(reward, log_ref, weight, 0.5, "literal")
    close(found.kl, torch.full((8,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_rewards_is_the_scale_of_beta(scale: float) -> None:
    reward, log_ref, weight = random_problem(14)
    one, other = (optimum_at_kl(reward * s, log_ref, weight, 0.3) for s in (1.0, scale))
    close(other.beta, one.beta * scale, rtol=1e-9, atol=0)
    close(other.log_ratio, one.log_ratio, rtol=1e-8, atol=1e-8)


def test_variances_over_twelve_orders_of_magnitude() -> None:
    reward, log_ref, _ = random_problem(15, 5, 13)
    weight = torch.logspace(-6, 6, 13, dtype=torch.float64).expand(5, 13)
    found = optimum_at_kl(reward, log_ref, weight, 0.05)
    close(found.kl, torch.full((5,), 0.05, dtype=torch.float64), rtol=1e-8)


def test_out_of_reach_names_the_problem_and_its_range() -> None:
    reward, log_ref, weight = random_problem(16)
    with pytest.raises(ConfigError, match="problem 0 has no β with KL 1000: its policies reach from"):
        optimum_at_kl(reward, log_ref, weight, 1000.0)
    found = optimum_at_kl(reward, log_ref, weight, 1000.0, unreachable="nan")
    assert bool(found.beta.isnan().all() & found.log_ratio.isnan().all())


def test_a_thousand_equal_rewards_have_no_budget_to_spend() -> None:
    log_ref = torch.full((1, 1000), -math.log(1000), dtype=torch.float64)
    with pytest.raises(ConfigError, match="problem 0 has no β with KL"):
        optimum_at_kl(torch.ones(1, 1000, dtype=torch.float64), log_ref, None, 0.1)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_must_be_positive(budget: Any) -> None:
    with pytest.raises(ConfigError, match="a budget must be positive and finite"):
        optimum_at_kl(*random_problem(17), budget)
