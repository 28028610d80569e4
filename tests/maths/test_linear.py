"""The linear fit against autograd, L-BFGS, a long sampler, the dense solution, and 500 simulated data sets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softplus

from surefoot.errors import ConfigError, DataError
from surefoot.maths import linear
from surefoot.maths.laplace import Covariance
from surefoot.maths.linear import LinearFit, fit_bradley_terry, log_evidence

SEEDS = st.integers(0, 10_000)


def stream_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream_of(seed), dtype=torch.float64)


def labelled(d: Tensor, truth: Tensor, seed: int) -> Tensor:
    """The differences turned so that the side that a draw from σ(d·truth) prefers comes first."""
    wins = torch.rand(len(d), generator=stream_of(seed), dtype=torch.float64) < torch.sigmoid(d @ truth)
    return torch.where(wins[:, None], d, -d)


def problem(pairs: int, features: int, seed: int = 0) -> Tensor:
    return labelled(normal(seed, pairs, features), torch.linspace(-1, 1, features, dtype=torch.float64), seed + 1)


def loss(w: Tensor, d: Tensor, tau: float, shift: Tensor | float = 0.0) -> Tensor:
    return softplus(shift - d @ w).sum() + 0.5 * tau * w.square().sum()


def dense(covariance: Covariance) -> Tensor:
    return torch.diag(covariance.scale) + covariance.basis @ torch.diag(covariance.shift) @ covariance.basis.T


def by_lbfgs(d: Tensor, tau: float, shift: Tensor | float = 0.0) -> Tensor:
    w = torch.zeros(d.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(w, d, tau, shift)
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    return w.detach()


# Against autograd and a general optimiser


@pytest.mark.parametrize("tau", [0.01, 1.0, 30.0])
def test_the_optimum_is_that_of_lbfgs(tau: float) -> None:
    d = problem(200, 6)
    found = fit_bradley_terry(d, penalty=tau)
    torch.testing.assert_close(found.weights, by_lbfgs(d, tau), rtol=1e-6, atol=1e-8)
    gradient = torch.autograd.functional.jacobian(lambda w: loss(w, d, tau), found.weights)
    assert float(gradient.abs().max()) < 1e-9
    assert found.loss == pytest.approx(float(softplus(-(d @ found.weights)).mean()))
    assert found.penalty == tau


def test_margins_shift_the_likelihood() -> None:
    """TRL's `margin`: the rewards should differ by at least so much."""
    d, shift = problem(200, 6), 2 * torch.rand(200, generator=stream_of(3), dtype=torch.float64)
    found = fit_bradley_terry(d, shift, penalty=0.5)
    torch.testing.assert_close(found.weights, by_lbfgs(d, 0.5, shift), rtol=1e-6, atol=1e-8)
    plain = fit_bradley_terry(d, penalty=0.5)
    assert float((d @ found.weights).mean()) > float((d @ plain.weights).mean()) + 0.1
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, d, 0.5, shift), found.weights)
    torch.testing.assert_close(dense(found.covariance), torch.linalg.inv(hessian), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tau", [0.01, 1.0, 30.0])
def test_the_posterior_is_the_inverse_of_autograds_hessian(tau: float) -> None:
    d = problem(200, 6)
    found = fit_bradley_terry(d, penalty=tau)
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, d, tau), found.weights)
    torch.testing.assert_close(dense(found.covariance), torch.linalg.inv(hessian), rtol=1e-8, atol=1e-10)


def test_the_sandwich_is_made_of_autograds_gradients() -> None:
    d = problem(200, 6)
    found = fit_bradley_terry(d, penalty=1.0, covariance="sandwich")
    each = torch.autograd.functional.jacobian(lambda w: softplus(-(d @ w)), found.weights)
    inverse = torch.linalg.inv(torch.autograd.functional.hessian(lambda w: loss(w, d, 1.0), found.weights))
    torch.testing.assert_close(dense(found.covariance), inverse @ each.T @ each @ inverse, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.weights, fit_bradley_terry(d, penalty=1.0).weights, rtol=0, atol=0)


def test_one_feature_by_hand() -> None:
    """Three of four pairs that differ by 1 say yes: σ(w) = 3/4 without a penalty, H = 4·(3/4)(1/4)."""
    d = torch.tensor([[1.0], [1.0], [1.0], [-1.0]], dtype=torch.float64)
    found = fit_bradley_terry(d, penalty=1e-9)
    assert float(found.weights) == pytest.approx(math.log(3), rel=1e-8)
    assert float(dense(found.covariance)) == pytest.approx(4 / 3, rel=1e-7)
    assert found.shrinkage == pytest.approx(0.0, abs=1e-8)
    assert found.left_out == 0


# Against a sampler


def hamiltonian(d: Tensor, start: Tensor, scale: Tensor, tau: float, chains: int, steps: int) -> Tensor:
    """(steps, chains, features) draws of the exact posterior; momenta and steps are in units of `scale`."""
    stream, x = stream_of(0), start.repeat(chains, 1)
    x = x + scale * torch.randn(x.shape, generator=stream, dtype=torch.float64)

    def gradient(w: Tensor) -> Tensor:
        return scale * (tau * w - torch.sigmoid(-(w @ d.T)) @ d)

    def energy(w: Tensor) -> Tensor:
        return softplus(-(w @ d.T)).sum(dim=1) + 0.5 * tau * w.square().sum(dim=1)

    draws, size = [], 0.3
    for _ in range(steps):
        momentum = torch.randn(x.shape, generator=stream, dtype=torch.float64)
        y, p = x, momentum - 0.5 * size * gradient(x)
        for leap in range(5):
            y = y + size * scale * p
            p = p - (1.0 if leap < 4 else 0.5) * size * gradient(y)
        before, after = (energy(w) + 0.5 * m.square().sum(dim=1) for w, m in ((x, momentum), (y, p)))
        accept = torch.rand(chains, generator=stream, dtype=torch.float64).log() < before - after
        x = torch.where(accept[:, None], y, x)
        draws.append(x)
    return torch.stack(draws[20:])


def test_agrees_with_a_long_run_sampler() -> None:
    """3,000 pairs: the exact posterior is Gaussian but for an error of order 1/n, below the sampler's own.

    The sampler's errors are those of means over 48 independent chains.
    """
    d, tau = problem(3000, 3, seed=5), 1.0
    found = fit_bradley_terry(d, penalty=tau)
    covariance = dense(found.covariance)
    draws = hamiltonian(d, found.weights, covariance.diagonal().sqrt(), tau, chains=48, steps=140)

    def within(per_chain: Tensor, expected: Tensor) -> None:
        error = per_chain.std(dim=0, correction=1) / math.sqrt(len(per_chain))
        assert bool(((per_chain.mean(dim=0) - expected).abs() < 4.5 * error).all())

    within(draws.mean(dim=0), found.weights)
    deviations = draws - draws.mean(dim=(0, 1))
    within(torch.einsum("scf,scg->cfg", deviations, deviations) / len(draws), covariance)
    precision = deviations.square().mean(dim=0).std(dim=0, correction=1) / math.sqrt(48)
    assert bool((precision < 0.05 * covariance.diagonal()).all())  # the sampler can tell a tenth of a variance


# Simulation: fresh pairs and labels


def repeated(penalty: float, covariance: str, draws: int = 500, pairs: int = 800, features: int = 4) -> dict[str, Any]:
    """Over fresh pairs and labels of one realisable truth: the MAP's margins of ten given differences."""
    truth = torch.linspace(-0.8, 0.8, features, dtype=torch.float64)
    asked = normal(77, 10, features)
    margins, variances, shrinkage = [], [], []
    for draw in range(draws):
        d = labelled(normal(1000 + draw, pairs, features), truth, 9000 + draw)
        found = fit_bradley_terry(d, penalty=penalty, covariance=covariance)  # type: ignore[arg-type]
        margins.append(asked @ found.weights)
        variances.append(found.covariance.quadratic(asked))
        shrinkage.append(found.shrinkage)
    margin, variance = torch.stack(margins), torch.stack(variances)
    covered = (margin - asked @ truth).abs() < 1.959964 * variance.sqrt()
    return {
        "ratio": variance.mean(dim=0) / margin.var(dim=0, correction=1),
        "coverage": float(covered.double().mean()),
        "shrinkage": max(shrinkage),
        "least": min(shrinkage),
    }


@pytest.mark.parametrize("covariance", ["sandwich", "laplace"])
def test_variances_are_those_of_fresh_data_and_intervals_cover(covariance: str) -> None:
    """Weak penalty, 200 pairs a feature. Each of the ten ratios errs by 6%, their mean by about 3%."""
    found = repeated(1e-3, covariance)
    assert 0.9 < float(found["ratio"].mean()) < 1.1
    assert 0.93 < found["coverage"] < 0.97
    assert found["shrinkage"] < 1e-3


def test_a_strong_penalty_is_told_and_its_intervals_do_not_cover() -> None:
    """Shrunk weights hardly vary over fresh data, and miss the truth: `shrinkage` says so."""
    found = repeated(1e5, "sandwich", draws=50)
    assert found["least"] > 0.99
    assert found["coverage"] < 0.5


def test_shrinkage_by_hand() -> None:
    """1 − γ/d with γ = Σ λ/(λ + τ); the unseen third feature is no direction that the pairs show."""
    d = torch.cat([torch.diag(torch.tensor([2.0, 1.0])).repeat(50, 1), torch.zeros(100, 1)], dim=1).double()
    d = torch.where(torch.arange(100)[:, None] % 4 < 2, d, -d)  # half the labels each way: weights 0, p = 1/2
    found = fit_bradley_terry(d, penalty=10.0)
    torch.testing.assert_close(found.weights, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    first, second = 50 * 4 / 4, 50 / 4
    assert found.shrinkage == pytest.approx(1 - (first / (first + 10) + second / (second + 10)) / 2)


# Sizes


@pytest.mark.parametrize("covariance", ["laplace", "sandwich"])
def test_more_features_than_pairs_is_the_direct_solution(covariance: str) -> None:
    d, tau = problem(30, 50), 0.7
    found = fit_bradley_terry(d, penalty=tau, covariance=covariance)  # type: ignore[arg-type]
    w = by_lbfgs(d, tau)
    torch.testing.assert_close(found.weights, w, rtol=1e-6, atol=1e-8)
    p = torch.sigmoid(d @ w)
    inverse = torch.linalg.inv(d.T @ torch.diag(p * (1 - p)) @ d + tau * torch.eye(50, dtype=torch.float64))
    scatter = d.T @ torch.diag((1 - p).square()) @ d
    expected = inverse if covariance == "laplace" else inverse @ scatter @ inverse
    torch.testing.assert_close(dense(found.covariance), expected, rtol=1e-6, atol=1e-8)
    assert found.left_out == 0
    asked = normal(3, 7, 50)
    torch.testing.assert_close(found.covariance.quadratic(asked), (asked @ expected * asked).sum(dim=1))


def test_draws_of_a_basis_have_its_covariance() -> None:
    """Draws of the weights where the posterior is a basis and a prior outside of it: within 4.5 standard errors."""
    found = fit_bradley_terry(problem(5, 8), penalty=0.7).covariance
    count = 100_000
    draws, expected = found.sample(count, stream_of(0)), dense(found)
    error = (expected.square() + torch.outer(expected.diagonal(), expected.diagonal())).sqrt() / math.sqrt(count)
    assert bool(((torch.cov(draws) - expected).abs() < 4.5 * error).all())


def test_beyond_the_limit_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With five directions kept of twelve: the share of Σ‖δ‖² in the others, by the singular values."""
    monkeypatch.setattr(linear, "_EXACT", 5)
    d = problem(100, 12)
    found = fit_bradley_terry(d, penalty=1.0)
    squares = torch.linalg.svdvals(d).square()
    assert found.left_out == pytest.approx(float(squares[5:].sum() / squares.sum()), rel=1e-9)
    kept = torch.linalg.svd(d, full_matrices=False)[2][:5].T
    inner = fit_bradley_terry(d @ kept, penalty=1.0)
    torch.testing.assert_close(found.weights, kept @ inner.weights, rtol=1e-6, atol=1e-9)
    outside = torch.linalg.svd(d, full_matrices=True)[2][5:]
    assert found.covariance.quadratic(outside).tolist() == pytest.approx([1.0] * 7)  # 1/τ: nothing is known of them


def test_beyond_the_limit_little_left_out_is_nearly_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    d = problem(100, 5) @ normal(8, 5, 12) + 1e-3 * normal(9, 100, 12)
    exact = fit_bradley_terry(d, penalty=1.0)
    monkeypatch.setattr(linear, "_EXACT", 5)
    found = fit_bradley_terry(d, penalty=1.0)
    assert 0 < found.left_out < 1e-5
    torch.testing.assert_close(d @ found.weights, d @ exact.weights, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.covariance.quadratic(d), exact.covariance.quadratic(d), rtol=1e-2, atol=1e-4)


def test_up_to_the_limit_of_pairs_all_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """More features than the limit, but fewer pairs: the span of the pairs holds everything."""
    whole = fit_bradley_terry(problem(20, 40), penalty=1.0)
    monkeypatch.setattr(linear, "_EXACT", 25)
    limited = fit_bradley_terry(problem(20, 40), penalty=1.0)
    assert limited.left_out == 0
    torch.testing.assert_close(limited.weights, whole.weights, rtol=1e-9, atol=1e-12)


# The penalty


def expected_loss(found: LinearFit, truth: Tensor) -> float:
    """Mean negative log likelihood of fresh labels, in nats: −p ln q − (1 − p) ln(1 − q) over 20,000 differences."""
    d = normal(555, 20_000, len(truth))
    p, margin = torch.sigmoid(d @ truth), d @ found.weights
    return float((p * softplus(-margin) + (1 - p) * softplus(margin)).mean())


@pytest.mark.parametrize("choice", ["evidence", "held_out"])
@pytest.mark.parametrize("size", [0.1, 0.5])
def test_the_chosen_penalty_is_near_the_best(choice: str, size: float) -> None:
    """40 features, 200 pairs: the excess loss over the best penalty is below a tenth of what a bad one costs."""
    truth = size * normal(12, 40)
    excess, bad = [], []
    for seed in range(6):
        d = labelled(normal(100 + seed, 200, 40), truth, 200 + seed)
        losses = {tau: expected_loss(fit_bradley_terry(d, penalty=tau), truth) for tau in linear._GRID}
        chosen = fit_bradley_terry(d, penalty=choice)  # type: ignore[arg-type]
        excess.append(expected_loss(chosen, truth) - min(losses.values()))
        bad.append(losses[linear._GRID[0]] - min(losses.values()))
    assert sum(excess) < 0.1 * sum(bad)
    assert max(excess) < 0.05


def test_evidence_is_largest_at_the_chosen_penalty() -> None:
    """MacKay's fixed point against a fine grid of `log_evidence`, each at its own optimum."""
    truth = 0.5 * normal(12, 10)
    d = labelled(normal(13, 400, 10), truth, 14)
    chosen = fit_bradley_terry(d, penalty="evidence").penalty
    grid = torch.logspace(-1, 2, 61, dtype=torch.float64).tolist()
    evidence = [log_evidence(d, fit_bradley_terry(d, penalty=tau).weights, tau) for tau in grid]
    best = max(range(len(grid)), key=evidence.__getitem__)
    assert chosen == pytest.approx(grid[best], rel=0.2)
    here = log_evidence(d, fit_bradley_terry(d, penalty=chosen).weights, chosen)
    assert here > max(evidence) - 0.02  # nats; the fixed point leaves out how the curvature moves with τ


def test_evidence_by_the_determinant() -> None:
    d, tau = problem(80, 4), 2.0
    w = fit_bradley_terry(d, penalty=tau).weights
    hessian = torch.autograd.functional.hessian(lambda x: loss(x, d, tau), w)
    expected = -float(loss(w, d, tau)) + 2 * math.log(tau) - 0.5 * float(torch.logdet(hessian))
    assert log_evidence(d, w, tau) == pytest.approx(expected, rel=1e-10)


def test_labels_of_a_coin_get_the_strongest_penalty() -> None:
    d = labelled(normal(20, 500, 8), torch.zeros(8, dtype=torch.float64), 21)
    found = fit_bradley_terry(d, penalty="evidence")
    assert found.shrinkage > 0.5
    assert float((d @ found.weights).abs().mean()) < 0.1


# Invariances and limits


@given(SEEDS)
def test_turning_the_features_turns_the_weights(seed: int) -> None:
    """‖w‖² doesn't know the axes: margins and their variances stay."""
    d, turn = problem(60, 5, seed), torch.linalg.qr(normal(seed + 2, 5, 5)).Q
    before, after = fit_bradley_terry(d, penalty=0.5), fit_bradley_terry(d @ turn, penalty=0.5)
    torch.testing.assert_close(after.weights, turn.T @ before.weights, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(after.covariance.quadratic(d @ turn), before.covariance.quadratic(d), rtol=1e-7, atol=0)


@given(SEEDS, st.permutations(range(40)))
def test_the_order_of_pairs_does_not_matter(seed: int, order: list[int]) -> None:
    d = problem(40, 4, seed)
    before, after = fit_bradley_terry(d), fit_bradley_terry(d[order])
    torch.testing.assert_close(after.weights, before.weights, rtol=1e-5, atol=1e-8)
    assert after.penalty == pytest.approx(before.penalty, rel=1e-5)


def test_the_same_data_give_the_same_bits() -> None:
    d = problem(100, 6)
    for choice in ("evidence", "held_out"):
        first, second = (fit_bradley_terry(d, penalty=choice) for _ in range(2))  # type: ignore[arg-type]
        assert torch.equal(first.weights, second.weights)
        assert torch.equal(first.covariance.shift, second.covariance.shift)


def test_data_that_can_be_told_apart_still_have_an_optimum() -> None:
    d = normal(30, 50, 3).abs()  # every feature of the chosen side is larger
    found = fit_bradley_terry(d, penalty=1e-3)
    torch.testing.assert_close(found.weights, by_lbfgs(d, 1e-3), rtol=1e-4, atol=1e-6)
    assert bool(found.weights.isfinite().all())


def test_float32_differences_are_fitted_in_float64() -> None:
    found = fit_bradley_terry(problem(100, 6).float(), penalty=1.0)
    assert found.weights.dtype == torch.float64
    assert found.covariance.shift.dtype == torch.float64


@pytest.mark.parametrize(
    ("differences", "keywords", "error", "message"),
    [
        (torch.zeros(0, 3), {}, DataError, r"\(pairs, features\) differences, got \(0, 3\)"),
        (torch.tensor([[1.0], [math.nan]]), {}, DataError, "pair 1 has a feature that isn't finite"),
        (torch.zeros(4, 2), {}, DataError, "equal features: there is nothing to learn from"),
        (torch.ones(4, 2), {"penalty": 0.0}, ConfigError, "penalty must be positive, got 0.0"),
        (torch.ones(4, 2), {"penalty": math.inf}, ConfigError, "penalty must be positive, got inf"),
        (torch.ones(4, 2), {"penalty": "held_out"}, DataError, "needs at least 10 pairs, got 4; give a number"),
    ],
)
def test_what_cannot_be_fitted(differences: Tensor, keywords: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit_bradley_terry(differences, **keywords)
