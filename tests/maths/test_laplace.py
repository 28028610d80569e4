"""Laplace covariances against autograd's dense Hessian, a long-run sampler, and each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import optimize

from surefoot.errors import ConfigError
from surefoot.maths.laplace import (
    Covariance,
    curvature,
    evidence_precision,
    posterior,
    random_features,
    sandwich,
    score_scatter,
)


def problem(pairs: int = 200, features: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(differences, MAP weights at τ = 0.5): chosen sides drawn from a true model."""
    stream = torch.Generator().manual_seed(seed)
    d = torch.randn(pairs, features, generator=stream, dtype=torch.float64)
    true = torch.linspace(-1, 1, features, dtype=torch.float64)
    wins = torch.rand(pairs, generator=stream, dtype=torch.float64) < torch.sigmoid(d @ true)
    d = torch.where(wins[:, None], d, -d)
    found = optimize.minimize(
        lambda w: float(loss(torch.from_numpy(w), d)), torch.zeros(features).double().numpy(), method="BFGS", tol=1e-10
    )
    return d, torch.from_numpy(found.x)


def loss(w: torch.Tensor, d: torch.Tensor, tau: float = 0.5) -> torch.Tensor:
    return torch.nn.functional.softplus(-(d @ w)).sum() + 0.5 * tau * w.square().sum()


def dense(covariance: Covariance) -> torch.Tensor:
    return torch.diag(covariance.scale) + covariance.basis @ torch.diag(covariance.shift) @ covariance.basis.T


def test_full_is_the_inverse_of_autograds_hessian() -> None:
    d, w = problem()
    hessian = torch.autograd.functional.hessian(lambda x: loss(x, d), w)
    found = posterior(curvature(d, d @ w), 0.5)
    torch.testing.assert_close(dense(found), torch.linalg.inv(hessian), rtol=1e-6, atol=1e-9)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.einsum("bi,ij,bj->b", x, torch.linalg.inv(hessian), x)
    torch.testing.assert_close(found.quadratic(x), expected, rtol=1e-6, atol=1e-9)


def test_low_rank_of_full_rank_is_full_and_less_is_more_variance() -> None:
    d, w = problem()
    hessian = curvature(d, d @ w)
    full = posterior(hessian, 0.5)
    torch.testing.assert_close(dense(posterior(hessian, 0.5, "low_rank", 6)), dense(full))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert bool((posterior(hessian, 0.5, "low_rank", 2).quadratic(x) >= full.quadratic(x) - 1e-12).all())


def test_low_rank_keeps_what_the_pairs_say_most_about() -> None:
    """H = diag(9, 1, 99) and τ = 1: of rank 1 the third direction is kept, of rank 2 the first as well."""
    hessian = torch.diag(torch.tensor([9.0, 1.0, 99.0], dtype=torch.float64))
    one, two = (dense(posterior(hessian, 1.0, "low_rank", rank)) for rank in (1, 2))
    torch.testing.assert_close(one, torch.diag(torch.tensor([1.0, 1.0, 0.01], dtype=torch.float64)))
    torch.testing.assert_close(two, torch.diag(torch.tensor([0.1, 1.0, 0.01], dtype=torch.float64)))


def test_low_rank_is_the_best_approximation_of_its_rank() -> None:
    """By the trace of Σ_r − Σ, which keeping any other eigenvectors makes larger."""
    d, w = problem()
    hessian = curvature(d, d @ w)
    values, vectors = torch.linalg.eigh(hessian)

    def trace(kept: tuple[int, ...]) -> float:
        shift = torch.diag(1 / (values[list(kept)] + 0.5) - 1 / 0.5)
        basis = vectors[:, list(kept)]
        return float((torch.eye(6, dtype=torch.float64) / 0.5 + basis @ shift @ basis.T).trace())

    least = min(trace(kept) for kept in itertools.combinations(range(6), 2))
    assert float(dense(posterior(hessian, 0.5, "low_rank", 2)).trace()) == pytest.approx(least, rel=1e-10)


def test_diagonal_inverts_the_diagonal() -> None:
    d, w = problem()
    hessian = curvature(d, d @ w)
    found = posterior(hessian, 0.5, "diagonal")
    assert found.scale.tolist() == pytest.approx((1 / (hessian.diagonal() + 0.5)).tolist())


def test_agrees_with_a_long_run_sampler() -> None:
    """Hamiltonian Monte Carlo of the exact posterior: with 400 pairs nearly Gaussian, of Laplace's covariance."""
    d, w = problem(400, 3, seed=3)
    stream = torch.Generator().manual_seed(0)
    chains, step = w.repeat(64, 1), 0.05

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return -torch.sigmoid(-(x @ d.T)) @ d + 0.5 * x

    def energy(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-(x @ d.T)).sum(dim=1) + 0.25 * x.square().sum(dim=1)

    draws = []
    for iteration in range(600):
        momentum = torch.randn(chains.shape, generator=stream, dtype=torch.float64)
        x, p = chains, momentum - 0.5 * step * gradient(chains)
        for leap in range(12):
            x = x + step * p
            p = p - (1.0 if leap < 11 else 0.5) * step * gradient(x)
        before, after = (energy(q) + 0.5 * m.square().sum(dim=1) for q, m in ((chains, momentum), (x, p)))
        accept = torch.rand(64, generator=stream, dtype=torch.float64).log() < before - after
        chains = torch.where(accept[:, None], x, chains)
        if iteration >= 100:
            draws.append(chains)
    sampled = torch.cov(torch.cat(draws).T)
    found = dense(posterior(curvature(d, d @ w), 0.5))
    torch.testing.assert_close(sampled.diagonal(), found.diagonal(), rtol=0.1, atol=0)
    torch.testing.assert_close(sampled, found, rtol=0, atol=0.1 * float(found.diagonal().max()))


def test_sandwich_against_the_dense_product_and_autograds_gradients() -> None:
    """(H + τ1)⁻¹ G (H + τ1)⁻¹, G the scatter of the pairs' own gradients as autograd gives them."""
    d, w = problem()
    each = torch.autograd.functional.jacobian(lambda x: torch.nn.functional.softplus(-(d @ x)), w)
    scatter = score_scatter(d, d @ w)
    torch.testing.assert_close(scatter, each.T @ each, rtol=1e-10, atol=1e-12)
    inverse = torch.linalg.inv(torch.autograd.functional.hessian(lambda x: loss(x, d), w))
    found = sandwich(curvature(d, d @ w), scatter, 0.5)
    torch.testing.assert_close(dense(found), inverse @ scatter @ inverse, rtol=1e-6, atol=1e-10)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(found.quadratic(x), (x @ dense(found) * x).sum(dim=1), rtol=1e-8, atol=1e-12)


def test_sandwich_says_nothing_of_what_no_pair_shows() -> None:
    """A feature that never differs: its weight never moves, so its variance is 0; the posterior's is the prior's."""
    d, w = problem()
    d, w = torch.cat([d, torch.zeros(len(d), 1)], dim=1), torch.cat([w, torch.zeros(1)])
    unseen = torch.eye(7, dtype=torch.float64)[6:]
    hessian = curvature(d, d @ w)
    assert float(sandwich(hessian, score_scatter(d, d @ w), 0.5).quadratic(unseen)) == pytest.approx(0.0, abs=1e-12)
    assert float(posterior(hessian, 0.5).quadratic(unseen)) == pytest.approx(2.0)


def test_samples_have_the_covariance() -> None:
    d, w = problem()
    covariances = [posterior(curvature(d, d @ w), 0.5, structure, 3) for structure in ("full", "low_rank", "diagonal")]
    for found in (*covariances, sandwich(curvature(d, d @ w), score_scatter(d, d @ w), 0.5)):
        draws = found.sample(200_000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(torch.cov(draws), dense(found), rtol=0, atol=0.02 * float(dense(found).max()))


def test_evidence_precision_against_a_grid() -> None:
    d, w = problem()
    hessian = curvature(d, d @ w)
    values = torch.linalg.eigvalsh(hessian)

    def evidence(tau: float) -> float:
        return -0.5 * tau * float(w.square().sum()) + 3 * math.log(tau) - 0.5 * float((values + tau).log().sum())

    found = evidence_precision(hessian, w)
    grid = torch.logspace(-4, 4, 4001, dtype=torch.float64).tolist()
    assert evidence(found) >= max(evidence(tau) for tau in grid) - 1e-9


def test_more_pairs_less_variance_and_far_is_more_than_near() -> None:
    d, w = problem()
    x = torch.ones(1, 6, dtype=torch.float64)
    few, many = (posterior(curvature(d[:n], d[:n] @ w), 0.5).quadratic(x) for n in (50, 200))
    assert float(many) < float(few)
    assert float(posterior(curvature(d, d @ w), 0.5).quadratic(3 * x)) == pytest.approx(
        9 * float(posterior(curvature(d, d @ w), 0.5).quadratic(x))
    )


def test_random_features_approximate_the_kernel() -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=stream, dtype=torch.float64)
    frequencies = torch.randn(4, 50_000, generator=stream, dtype=torch.float64)
    phases = 2 * math.pi * torch.rand(50_000, generator=stream, dtype=torch.float64)
    found = random_features(x, frequencies, phases)
    expected = (-0.5 * torch.cdist(x, x).square()).exp()
    torch.testing.assert_close(found @ found.T, expected, rtol=0, atol=0.03)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="structure must be one of"):
        posterior(torch.eye(2), 1.0, "kron")
    with pytest.raises(ConfigError, match="precision must be positive"):
        posterior(torch.eye(2), 0.0)
    with pytest.raises(ConfigError, match="precision must be positive"):
        sandwich(torch.eye(2), torch.eye(2), -1.0)
