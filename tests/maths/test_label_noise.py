"""Ties, several answers and flipped labels: the likelihood by hand, by autograd, and the flip rate by integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.maths.label_noise import PreferenceLabels, preference_labels
from surefoot.maths.laplace import Covariance
from surefoot.maths.linear import fit_bradley_terry, log_evidence

MARGINS = torch.tensor([-3.0, -0.4, 0.0, 0.7, 2.5], dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(d: Tensor, truth: Tensor, flip_rate: float, seed: int) -> Tensor:
    """The differences turned so that the side that a noisy draw prefers comes first."""
    p = flip_rate + (1 - 2 * flip_rate) * torch.sigmoid(d @ truth)
    wins = torch.rand(len(d), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < p
    return torch.where(wins[:, None], d, -d)


def answers(flip_rate: float) -> PreferenceLabels:
    share = torch.tensor([0.0, 0.25, 0.5, 1.0, 2 / 3], dtype=torch.float64)
    count = torch.tensor([1.0, 4.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    return preference_labels(5, share=share, count=count, flip_rate=flip_rate)


def dense(covariance: Covariance) -> Tensor:
    return torch.diag(covariance.scale) + covariance.basis @ torch.diag(covariance.shift) @ covariance.basis.T


def test_the_loss_by_hand() -> None:
    """Three of four answers for the second side at m = −0.4, ε = .1: −(ln p + 3 ln(1 − p))."""
    p = 0.1 + 0.8 / (1 + math.exp(0.4))
    found = answers(0.1).loss(MARGINS)
    assert float(found[1]) == pytest.approx(-(math.log(p) + 3 * math.log(1 - p)), rel=1e-12)
    assert float(answers(0.2).loss(MARGINS)[2]) == pytest.approx(math.log(2), rel=1e-12)  # a tie at margin 0


@pytest.mark.parametrize("flip_rate", [0.0, 0.05, 0.4])
def test_slope_and_information_against_autograd(flip_rate: float) -> None:
    """The slope is the loss's derivative; the information is its expected second derivative over answers."""
    m = MARGINS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(answers(flip_rate).loss(m).sum(), m)
    torch.testing.assert_close(answers(flip_rate).slope(MARGINS), slope, rtol=1e-10, atol=1e-12)
    p = flip_rate + (1 - 2 * flip_rate) * torch.sigmoid(MARGINS)
    expected = torch.zeros(5, dtype=torch.float64)
    for share, chance in ((1.0, p), (0.0, 1 - p)):
        one = preference_labels(5, share=torch.full((5,), share, dtype=torch.float64), flip_rate=flip_rate)
        hessian = torch.autograd.functional.hessian(lambda x, one=one: one.loss(x).sum(), MARGINS)
        expected = expected + chance * hessian.diagonal()
    found = answers(flip_rate)
    torch.testing.assert_close(found.information(MARGINS), found.count * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("flip_rate", [0.0, 0.2])
def test_far_margins_stay_finite(flip_rate: float) -> None:
    labels = preference_labels(2, share=torch.tensor([1.0, 0.0]), flip_rate=flip_rate)
    far = torch.tensor([-2000.0, 2000.0], dtype=torch.float64)
    for values in (labels.loss(far), labels.slope(far), labels.information(far)):
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("flip_rate", [0.0, 0.15])
def test_the_fit_is_that_of_a_general_optimiser(flip_rate: float) -> None:
    d = noisy(normal(1, 150, 4), torch.tensor([1.5, -1.0, 0.5, 0.0], dtype=torch.float64), flip_rate, 2)
    share = torch.rand(150, generator=torch.Generator().manual_seed(3), dtype=torch.float64).mul(4).round() / 4
    share[:75] = 1.0
    count = torch.arange(150, dtype=torch.float64) % 3 + 1

    def loss(w: Tensor) -> Tensor:
        p = flip_rate + (1 - 2 * flip_rate) * torch.sigmoid(d @ w)
        return -(count * (share * p.log() + (1 - share) * (1 - p).log())).sum() + 0.5 * 2.0 * w.square().sum()

    def with_slope(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        value = loss(w)
        value.backward()
        assert w.grad is not None
        return value.item(), w.grad.numpy()

    found = fit_bradley_terry(d, share=share, count=count, flip_rate=flip_rate, penalty=2.0)
    best = minimize(with_slope, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-10})
    torch.testing.assert_close(found.weights, torch.from_numpy(best.x), rtol=1e-5, atol=1e-7)
    assert found.loss == pytest.approx((float(best.fun) - float(best.x @ best.x)) / float(count.sum()), rel=1e-7)


def test_several_answers_are_as_several_rows() -> None:
    """Two of three annotators prefer the first side: the same as three pairs, one of them turned."""
    d = normal(5, 40, 3)
    counted = fit_bradley_terry(
        d, share=torch.full((40,), 2 / 3, dtype=torch.float64), count=torch.full((40,), 3.0), penalty=0.5
    )
    rows = fit_bradley_terry(torch.cat([d, d, -d]), penalty=0.5)
    torch.testing.assert_close(counted.weights, rows.weights, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dense(counted.covariance), dense(rows.covariance), rtol=1e-9, atol=1e-11)


def test_ties_alone_leave_the_prior_mean_and_narrow_the_posterior() -> None:
    d = normal(6, 50, 3)
    found = fit_bradley_terry(d, share=torch.full((50,), 0.5), penalty=1.0)
    torch.testing.assert_close(found.weights, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(dense(found.covariance), torch.linalg.inv(d.T @ d / 4 + torch.eye(3).double()))


def test_evidence_with_flips_against_integration() -> None:
    """One weight, 400 pairs: the flip rate with the largest evidence is also best by the integral.

    Without flips both agree closely. With flips the expected information stands for the curvature, which differs where
    the rate is wrong: .29 nats were seen, of the 6 by which these rates differ.
    """
    d = noisy(2.0 * normal(7, 400, 1), torch.tensor([1.5], dtype=torch.float64), 0.15, 8)

    def exact(rate: float) -> float:
        labels = preference_labels(400, flip_rate=rate)
        peak = fit_bradley_terry(d, flip_rate=rate, penalty=1.0).weights

        def density(w: float) -> float:
            loss = float(labels.loss(d[:, 0] * w).sum()) + 0.5 * w * w
            best = float(labels.loss(d @ peak).sum()) + 0.5 * float(peak @ peak)
            return math.exp(best - loss)

        area = quad(density, float(peak) - 2, float(peak) + 2, epsabs=1e-12)[0]
        best = float(labels.loss(d @ peak).sum()) + 0.5 * float(peak @ peak)
        return -best + math.log(area / math.sqrt(2 * math.pi))

    rates = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    laplace = [
        log_evidence(d, fit_bradley_terry(d, flip_rate=r, penalty=1.0).weights, 1.0, flip_rate=r) for r in rates
    ]
    integrals = [exact(rate) for rate in rates]
    assert laplace[0] == pytest.approx(integrals[0], abs=0.01)
    assert laplace == pytest.approx(integrals, abs=0.35)
    assert max(integrals) - min(integrals) > 3
    chosen = fit_bradley_terry(d, flip_rate="evidence", penalty=1.0).flip_rate
    assert exact(chosen) > max(integrals) - 0.1


@pytest.mark.parametrize("flip_rate", [0.0, 0.2])
def test_the_flip_rate_is_recovered(flip_rate: float) -> None:
    """4,000 pairs with clear margins: the estimate's standard error is below .01."""
    truth = torch.tensor([2.0, -1.5, 1.0, 0.5, -2.0], dtype=torch.float64)
    d = noisy(normal(9, 4000, 5), truth, flip_rate, 10)
    found = fit_bradley_terry(d, flip_rate="evidence")
    assert found.flip_rate == pytest.approx(flip_rate, abs=0.03)
    torch.testing.assert_close(found.weights, truth, rtol=0, atol=0.6)
    if flip_rate:  # without it the weights are too small
        assert float(fit_bradley_terry(d).weights.norm()) < 0.6 * float(truth.norm())


def test_without_evidence_the_flip_rate_is_zero() -> None:
    """Thirty pairs say next to nothing about it: a rate of nearly ½ would be as likely, and would erase the reward."""
    d = noisy(normal(11, 30, 6), 0.3 * normal(12, 6), 0.2, 13)
    assert fit_bradley_terry(d, flip_rate="evidence").flip_rate == 0


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"flip_rate": 0.5}, ConfigError, "flip_rate must be between 0 and 0.45, got 0.5"),
        ({"share": torch.tensor([0.5, 1.2])}, DataError, r"pair 1: the share of answers .* got 1\.2"),
        ({"share": torch.tensor([0.5, math.nan])}, DataError, "pair 1: the share of answers"),
        ({"count": torch.tensor([0.0, 1.0])}, DataError, "pair 0: the number of answers must be positive, got 0"),
        ({"count": torch.tensor([1.0])}, DataError, "count of the labels must have one number for each of 2 pairs"),
    ],
)
def test_labels_that_cannot_be(keywords: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preference_labels(2, **keywords)  # type: ignore[arg-type]
