"""Exact optima against hand-worked values, scipy, 60-digit arithmetic, and the symmetries that they must have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import ConfigError, DataError
from surefoot.maths.objectives import generalized_kl
from surefoot.theory.exact import divergence, literal_optimum, optimum, ordinary_optimum, weighted_optimum
from tests.maths.oracles import best_value_by_bfgs, policy_by_bisection, policy_by_brentq, random_problem

SEEDS = st.integers(0, 10_000)
CLOSE: dict[str, float] = {"rtol": 1e-10, "atol": 1e-12}


def close(a: torch.Tensor, b: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **(tolerance or CLOSE))


# Hand-worked values


def test_ordinary_optimum_by_hand() -> None:
    """π₀ = (1/2, 1/2), r = (0, β ln 3): π* = (1/4, 3/4), ν = β ln 2, KL = ln 2 + (1/4)ln(1/4) + (3/4)ln(3/4)."""
    half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    found = ordinary_optimum(torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64), half, 2.0)
    close(found.policy, torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert float(found.nu) == pytest.approx(2 * math.log(2), rel=1e-14)
    assert float(found.kl) == pytest.approx(math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75), rel=1e-13)


def test_weighted_optimum_by_hand() -> None:
    """w = (1, 2), β = 1, ν = 0: factors e^{r₁} = 1/4 and e^{r₂/2} = 7/4 leave the sum of (1/2, 1/2) at 1."""
    half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    reward = torch.tensor([[math.log(0.25), 2 * math.log(1.75)]], dtype=torch.float64)
    found = weighted_optimum(reward, half, torch.tensor([[1.0, 2.0]], dtype=torch.float64), 1.0)
    close(found.policy, torch.tensor([[0.125, 0.875]], dtype=torch.float64))
    assert abs(float(found.nu)) < 1e-14


def test_literal_optimum_by_hand() -> None:
    """With r = βw the literal objective's effective reward is constant, so it stays at π₀."""
    reference = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[0.3, 1.0, 4.0]], dtype=torch.float64)
    found = literal_optimum(0.7 * weight, reference.log(), weight, 0.7)
    close(found.policy, reference)


# Independent oracles


@pytest.mark.parametrize("beta", [0.05, 0.3, 5.0])
def test_weighted_against_brentq(beta: float) -> None:
    reward, log_ref, weight = random_problem(1, problems=20)
    found = weighted_optimum(reward, log_ref, weight, beta).policy
    for i in range(20):
        close(found[i], policy_by_brentq(reward[i], log_ref[i], weight[i], beta), rtol=1e-9, atol=1e-11)


def weighted_penalty(weight: torch.Tensor, beta: float) -> Any:
    w = weight.numpy()
    return lambda p, q: beta * float((w * (p * np.log(p / q) - p + q)).sum())


def literal_penalty(weight: torch.Tensor, beta: float) -> Any:
    w = weight.numpy()
    return lambda p, q: beta * float((w * p * np.log(p / q)).sum())


@pytest.mark.parametrize("form", ["generalized", "literal"])
def test_against_a_general_optimiser(form: Any) -> None:
    """Neither ν nor the formula of π* is used: BFGS on the simplex can't beat the optimum, and comes to its value."""
    beta, penalty = 0.6, literal_penalty if form == "literal" else weighted_penalty
    reward, log_ref, weight = random_problem(2, problems=5, actions=5)
    found = optimum(reward, log_ref, weight, beta, form).policy
    for i in range(5):
        reference, cost = log_ref[i].exp(), penalty(weight[i], beta)
        value = float(found[i] @ reward[i]) - cost(found[i].numpy(), reference.numpy())
        assert value == pytest.approx(best_value_by_bfgs(reward[i], reference, cost), abs=1e-8)


@given(SEEDS, st.floats(0.05, 20))
def test_kkt_conditions(seed: int, beta: float) -> None:
    """At the optimum r − βw ln(π/π₀) is one number ν for all actions, and the probabilities sum to 1."""
    reward, log_ref, weight = random_problem(seed)
    found = weighted_optimum(reward, log_ref, weight, beta)
    close(found.policy.sum(dim=1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    close(reward - beta * weight * found.log_ratio, found.nu[:, None].expand_as(reward), rtol=1e-9, atol=1e-9)


def test_variances_over_twelve_orders_of_magnitude() -> None:
    stream = torch.Generator().manual_seed(3)
    reward = torch.randn(6, 13, generator=stream, dtype=torch.float64)
    weight = torch.logspace(-6, 6, 13, dtype=torch.float64)[torch.randperm(13, generator=stream)].expand(6, 13)
    log_ref = torch.log_softmax(torch.randn(6, 13, generator=stream, dtype=torch.float64), dim=1)
    found = weighted_optimum(reward, log_ref, weight, 1.0)
    close(found.policy.sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)
    for i in range(6):
        true = [float(v) for v in policy_by_bisection(reward[i], log_ref[i], weight[i], 1.0)]
        close(found.log_ratio[i], torch.tensor(true, dtype=torch.float64), rtol=1e-12, atol=1e-10)


def test_probabilities_down_to_1e_300() -> None:
    """A reward of 800 brings an action of probability 1e-300 to nearly 1; the 60-digit answer is met."""
    log_ref = torch.tensor([[0.0, -300 * math.log(10), -150 * math.log(10), -300 * math.log(10)]], dtype=torch.float64)
    reward = torch.tensor([[0.0, 800.0, 100.0, 650.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0, 0.5, 3.0]], dtype=torch.float64)
    found = weighted_optimum(reward, log_ref, weight, 1.0)
    true = policy_by_bisection(reward[0], log_ref[0], weight[0], 1.0)
    close(found.log_ratio[0], torch.tensor([float(v) for v in true], dtype=torch.float64), rtol=1e-12, atol=1e-10)
    assert float(found.policy[0, 1]) > 0.99


def test_an_action_that_cannot_be_taken_stays_at_zero() -> None:
    log_ref = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]], dtype=torch.float64)
    reward = torch.tensor([[0.0, 1.0, 1e6]], dtype=torch.float64)
    for weight in (None, torch.tensor([[1.0, 2.0, 1e-3]], dtype=torch.float64)):
        found = optimum(reward, log_ref, weight, 1.0)
        assert float(found.policy[0, 2]) == 0.0
        close(found.policy.sum(dim=1), torch.ones(1, dtype=torch.float64))
        assert math.isfinite(float(found.kl))


def test_a_thousand_equal_rewards() -> None:
    log_ref = torch.full((2, 1000), -math.log(1000), dtype=torch.float64)
    weight = random_problem(4, 2, 1000)[2]
    found = weighted_optimum(torch.full((2, 1000), 3.0, dtype=torch.float64), log_ref, weight, 0.1)
    close(found.log_ratio, torch.zeros(2, 1000, dtype=torch.float64), rtol=0, atol=1e-12)
    close(found.nu, torch.full((2,), 3.0, dtype=torch.float64))
    assert float(found.kl.abs().max()) < 1e-20


# Limits


@given(SEEDS, st.floats(0.05, 20), st.floats(0.01, 100))
def test_equal_weights_give_the_ordinary_objective(seed: int, beta: float, level: float) -> None:
    reward, log_ref, _ = random_problem(seed)
    weight = torch.full_like(reward, level)
    plain = ordinary_optimum(reward, log_ref, beta * level)
    for found in (weighted_optimum(reward, log_ref, weight, beta), literal_optimum(reward, log_ref, weight, beta)):
        close(found.log_ratio, plain.log_ratio, rtol=1e-9, atol=1e-9)


@given(SEEDS)
def test_a_large_beta_gives_the_reference(seed: int) -> None:
    """First order: π − π₀ = π₀(r − ν)/(βw), so it shrinks as 1/β."""
    reward, log_ref, weight = random_problem(seed)
    for w in (None, weight):
        near, far = (optimum(reward, log_ref, w, beta) for beta in (1e6, 1e9))
        assert float(far.log_ratio.abs().max()) < 1e-6
        close(far.log_ratio * 1e3, near.log_ratio, rtol=1e-3, atol=1e-9)


def test_a_large_beta_does_not_bring_the_literal_form_to_the_reference() -> None:
    """It tends to the minimiser of E_π[w ln(π/π₀)]: w (ln(π/π₀) + 1) is one number, and rewards no longer matter."""
    reward, log_ref, weight = random_problem(5)
    found = literal_optimum(reward, log_ref, weight, 1e10)
    level = weight * (found.log_ratio + 1)
    close(level, level.mean(dim=1, keepdim=True).expand_as(level), rtol=1e-8, atol=1e-8)
    assert float(found.kl.min()) > 0.01


def test_a_small_beta_takes_the_best_action() -> None:
    reward, log_ref, weight = random_problem(6)
    found = weighted_optimum(reward, log_ref, weight, 1e-5).policy
    assert bool((found.argmax(dim=1) == reward.argmax(dim=1)).all())
    close(found.max(dim=1).values, torch.ones(4, dtype=torch.float64))


# Invariances


@settings(max_examples=50)
@given(SEEDS, st.floats(-1e3, 1e3), st.sampled_from(["generalized", "literal"]))
def test_adding_a_constant_to_the_rewards_moves_only_nu(seed: int, constant: float, form: Any) -> None:
    reward, log_ref, weight = random_problem(seed)
    for w in (None, weight):
        before, after = optimum(reward, log_ref, w, 0.5, form), optimum(reward + constant, log_ref, w, 0.5, form)
        close(after.log_ratio, before.log_ratio, rtol=1e-8, atol=1e-8)
        close(after.nu, before.nu + constant, rtol=1e-10, atol=1e-10)


def test_the_paper_formula_without_nu_is_not_invariant() -> None:
    """Guards the reason for ν: π₀ exp(r/(βw)), normalised, changes with a constant added to r."""
    reward, log_ref, weight = random_problem(7)
    first, second = (torch.softmax(log_ref + (reward + c) / weight, dim=1) for c in (0.0, 5.0))
    assert float((first - second).abs().max()) > 0.05


@given(SEEDS, st.permutations(range(7)))
def test_permuting_actions_permutes_the_policy(seed: int, order: list[int]) -> None:
    reward, log_ref, weight = random_problem(seed)
    before, after = (
        optimum(reward[:, o], log_ref[:, o], weight[:, o], 0.5).log_policy for o in (list(range(7)), order)
    )
    close(after, before[:, order], rtol=1e-9, atol=1e-9)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_only_the_product_of_beta_and_weight_matters(seed: int, factor: float) -> None:
    reward, log_ref, weight = random_problem(seed)
    before, after = optimum(reward, log_ref, weight, 0.5), optimum(reward, log_ref, weight * factor, 0.5 / factor)
    close(after.log_ratio, before.log_ratio, rtol=1e-9, atol=1e-9)


@given(SEEDS, st.floats(0.05, 0.95))
def test_merging_two_identical_actions(seed: int, share: float) -> None:
    """Splitting an action in two of the same reward and weight splits its probability and changes nothing else."""
    reward, log_ref, weight = random_problem(seed)
    apart = [torch.cat([x, x[:, -1:]], dim=1) for x in (reward, log_ref, weight)]
    apart[1][:, -2] += math.log(share)
    apart[1][:, -1] += math.log(1 - share)
    for form in ("generalized", "literal"):
        whole, split = optimum(reward, log_ref, weight, 0.5, form), optimum(*apart, 0.5, form)  # type: ignore[arg-type]
        close(split.policy[:, :-2], whole.policy[:, :-1], rtol=1e-9, atol=1e-12)
        close(split.policy[:, -2:].sum(dim=1), whole.policy[:, -1], rtol=1e-9, atol=1e-12)
        close(split.kl, whole.kl, rtol=1e-9, atol=1e-12)


def test_a_batch_is_its_problems_one_by_one() -> None:
    reward, log_ref, weight = random_problem(8, problems=40, spread=2.0)
    beta = torch.linspace(0.02, 5, 40, dtype=torch.float64)
    together = weighted_optimum(reward, log_ref, weight, beta)
    for i in range(40):
        alone = weighted_optimum(reward[i : i + 1], log_ref[i : i + 1], weight[i : i + 1], float(beta[i]))
        close(together.log_ratio[i], alone.log_ratio[0], rtol=1e-10, atol=1e-10)


# Divergence


def test_divergence_is_generalized_kl_and_keeps_its_digits() -> None:
    reward, log_ref, weight = random_problem(9)
    found = weighted_optimum(reward, log_ref, weight, 0.5)
    close(divergence(found.log_ratio, log_ref, weight), generalized_kl(found.policy, log_ref.exp(), weight))
    close(found.kl, (found.policy * found.log_ratio).sum(dim=1), rtol=1e-10, atol=1e-12)
    tiny = torch.tensor([[1e-9, -1e-9]], dtype=torch.float64)
    half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    assert float(divergence(tiny, half)) == pytest.approx(0.5e-18, rel=1e-8)


def test_divergence_of_an_action_given_up() -> None:
    """π = (1, 0) from (1/2, 1/2): KL = ln 2."""
    ratio = torch.tensor([[math.log(2), -math.inf]], dtype=torch.float64)
    assert float(divergence(ratio, torch.full((1, 2), -math.log(2), dtype=torch.float64))) == pytest.approx(
        math.log(2)
    )


# Errors


def bad(what: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    reward, log_ref, weight = random_problem(10, problems=2, actions=3)
    if what == "reward":
        reward[1, 2] = math.nan
    elif what == "weight":
        weight[1, 0] = 0.0
    elif what == "reference":
        log_ref[1] += 1.0
    return reward, log_ref, weight


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reward", "the reward of problem 1, action 2 is nan"),
        ("weight", "the weight of problem 1, action 0 is 0.0"),
        ("reference", "the reference probabilities of problem 1 sum to 2.718"),
    ],
)
def test_bad_input_is_named(what: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        weighted_optimum(*bad(what), 1.0)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    with pytest.raises(ConfigError, match="β must be positive"):
        weighted_optimum(*bad("nothing"), beta)


def test_a_product_beyond_float64_is_refused() -> None:
    with pytest.raises(ConfigError, match="βw leaves the range"):
        weighted_optimum(*bad("nothing"), 1e-300)
