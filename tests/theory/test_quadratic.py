"""The theorem's quadratic problems, with and without the simplex, against SLSQP and optimality conditions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from surefoot.errors import ConfigError, DataError
from surefoot.theory.quadratic import (
    project,
    simplex_update,
    simplex_update_at_kl,
    simplex_update_within,
    update,
    update_within,
)
from tests.maths.oracles import random_problem

SEEDS = st.integers(0, 10_000)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def problem(seed: int, problems: int = 4, actions: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(reward, π₀, metric)."""
    reward, log_ref, metric = random_problem(seed, problems, actions)
    return reward, log_ref.exp(), metric


def test_projection_is_the_matrix_of_the_paper() -> None:
    """M = Σ⁻¹ − Σ⁻¹11ᵀΣ⁻¹/(1ᵀΣ⁻¹1), written out with NumPy."""
    reward, _, metric = problem(1)
    for i in range(4):
        inverse = np.diag(1 / metric[i].numpy())
        ones = np.ones((6, 1))
        m = inverse - inverse @ ones @ ones.T @ inverse / (ones.T @ inverse @ ones)
        close(project(reward, metric)[i], torch.from_numpy(m @ reward[i].numpy()))


def test_within_by_hand() -> None:
    """R = (1, −1), D = 1, ε = 2: d = (1, −1). With D = (3, 1): d = (1, −1)·√(2/4)."""
    reward = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    close(update_within(reward, torch.ones_like(reward), 2.0), reward)
    close(update_within(reward, torch.tensor([[3.0, 1.0]], dtype=torch.float64), 2.0), reward * math.sqrt(0.5))
    close(update(reward, torch.ones_like(reward), 4.0), reward / 4)


def slsqp(reward: Any, metric: Any, floor: Any, *, radius: float | None = None, beta: float = 0.0) -> Any:
    """R·d − (β/2) dᵀDd, maximised under Σd = 0, d ≥ floor and, with a radius, dᵀDd ≤ radius."""
    rules: list[Any] = [{"type": "eq", "fun": lambda d: d.sum(), "jac": lambda d: np.ones_like(d)}]
    if radius is not None:
        rules.append({"type": "ineq", "fun": lambda d: radius - d @ (metric * d), "jac": lambda d: -2 * metric * d})
    found = optimize.minimize(
        lambda d: beta / 2 * d @ (metric * d) - reward @ d,
        np.zeros_like(reward),
        jac=lambda d: beta * metric * d - reward,
        bounds=None if floor is None else [(x, None) for x in floor],
        constraints=rules,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return found.x


def value(reward: torch.Tensor, metric: torch.Tensor, d: Any, beta: float) -> float:
    step = torch.as_tensor(d)
    return float(reward @ step - beta / 2 * (metric * step.square()).sum())


@pytest.mark.parametrize("beta", [0.3, 2.0, 20.0])
def test_given_beta_against_slsqp(beta: float) -> None:
    reward, pi, metric = problem(2)
    free, held = update(reward, metric, beta), simplex_update(reward, pi, metric, beta)
    for i in range(4):
        numbers = reward[i].numpy(), metric[i].numpy()
        for mine, floor in ((free[i], None), (held[i], -pi[i].numpy())):
            other = slsqp(*numbers, floor, beta=beta)
            assert value(reward[i], metric[i], mine, beta) == pytest.approx(
                value(reward[i], metric[i], other, beta), abs=1e-8
            )


@pytest.mark.parametrize("radius", [1e-4, 0.01, 0.3])
def test_given_radius_against_slsqp(radius: float) -> None:
    reward, pi, metric = problem(3)
    free, held = update_within(reward, metric, radius), simplex_update_within(reward, pi, metric, radius)
    for i in range(4):
        numbers = reward[i].numpy(), metric[i].numpy()
        for mine, floor in ((free[i], None), (held[i], -pi[i].numpy())):
            other = slsqp(*numbers, floor, radius=radius)
            assert float(reward[i] @ mine) == pytest.approx(float(numbers[0] @ other), abs=1e-8)
            assert float((metric[i] * mine.square()).sum()) <= radius * (1 + 1e-10)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(1e-2, 1e2))
def test_optimality_on_the_simplex(seed: int, beta: float) -> None:
    """R − βDd is one number c on the free actions and no more than c on those at their floor."""
    reward, pi, metric = problem(seed)
    d = simplex_update(reward, pi, metric, beta)
    close(d.sum(dim=1), torch.zeros(4, dtype=torch.float64))
    assert bool((pi + d >= 0).all())
    slack = reward - beta * metric * d
    for i in range(4):
        free = pi[i] + d[i] > 1e-12
        close(slack[i][free], slack[i][free].mean().expand(int(free.sum())), rtol=1e-8, atol=1e-8)
        assert bool((slack[i][~free] <= slack[i][free].mean() + 1e-8).all())


def test_a_loose_radius_saturates_at_the_best_action() -> None:
    reward, pi, metric = problem(4)
    moved = pi + simplex_update_within(reward, pi, metric, 1e6)
    close(moved.gather(1, reward.argmax(dim=1, keepdim=True)), torch.ones(4, 1, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(1e-4, 0.5))
def test_kl_budget_is_met(seed: int, budget: float) -> None:
    reward, pi, metric = problem(seed)
    d = simplex_update_at_kl(reward, pi, metric, budget, "nan")
    policy = pi + d
    kl = (torch.xlogy(policy, policy) - torch.xlogy(policy, pi)).sum(dim=1)
    reached = ~kl.isnan()
    assert bool(reached.any())
    close(kl[reached], torch.full_like(kl[reached], budget), rtol=1e-8, atol=1e-12)


@given(SEEDS, st.floats(-1e3, 1e3), st.permutations(range(6)))
def test_constants_and_order(seed: int, constant: float, order: list[int]) -> None:
    reward, pi, metric = problem(seed)
    before = simplex_update(reward, pi, metric, 1.0)
    close(simplex_update(reward + constant, pi, metric, 1.0), before, rtol=1e-9, atol=1e-9)
    close(simplex_update(reward[:, order], pi[:, order], metric[:, order], 1.0), before[:, order], atol=1e-11)
    close(update_within(reward + constant, metric, 0.1), update_within(reward, metric, 0.1), rtol=1e-8, atol=1e-9)


@given(SEEDS, st.floats(1e-6, 1e6))
def test_scaling_the_metric_scales_the_radius(seed: int, factor: float) -> None:
    reward, _, metric = problem(seed)
    close(update_within(reward, metric * factor, 0.1 * factor), update_within(reward, metric, 0.1), rtol=1e-9)
    close(update(reward, metric * factor, 1 / factor), update(reward, metric, 1.0), rtol=1e-9, atol=1e-11)


def test_metrics_over_twelve_orders_of_magnitude() -> None:
    """R·d of the update at ε = 1 is √(RᵀMR); the same sum in exact fractions."""
    from fractions import Fraction

    metric = torch.logspace(-6, 6, 13, dtype=torch.float64)[None]
    reward = torch.randn(1, 13, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    r, d = ([Fraction(float(v)) for v in row[0]] for row in (reward, metric))
    total = sum(1 / x for x in d)
    centre = sum(a / x for a, x in zip(r, d, strict=True)) / total
    exact = math.sqrt(sum((a - centre) ** 2 / x for a, x in zip(r, d, strict=True)))
    assert float((reward * update_within(reward, metric, 1.0)).sum()) == pytest.approx(exact, rel=1e-10)


def test_equal_rewards_move_nothing() -> None:
    reward = torch.full((1, 1000), 3.0, dtype=torch.float64)
    pi = torch.full((1, 1000), 1e-3, dtype=torch.float64)
    metric = random_problem(6, 1, 1000)[2]
    for d in (update_within(reward, metric, 1.0), simplex_update(reward, pi, metric, 1.0)):
        close(d, torch.zeros_like(d), atol=1e-15)


def test_errors() -> None:
    reward, pi, metric = problem(7)
    with pytest.raises(DataError, match="the metric of problem 0, action 2 must be positive"):
        project(reward, metric.index_fill(1, torch.tensor([2]), 0.0))
    with pytest.raises(DataError, match="the reward of problem 0, action 1 must be finite"):
        project(reward.index_fill(1, torch.tensor([1]), math.nan), metric)
    with pytest.raises(DataError, match="the reference of problem 0 isn't a probability distribution"):
        simplex_update(reward, pi * 2, metric, 1.0)
    with pytest.raises(ConfigError, match="β must be positive"):
        update(reward, metric, 0.0)
    with pytest.raises(ConfigError, match="budget must be positive"):
        update_within(reward, metric, 0.0)
