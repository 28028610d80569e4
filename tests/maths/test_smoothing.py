"""Smoothed variances: lengths against dense matrices, the regression against numpy, the noise that it takes away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

from surefoot.errors import DataError, VarianceError
from surefoot.maths.ensemble import sample_variance
from surefoot.maths.smoothing import (
    _STRENGTHS,
    RIDGES,
    LogVariance,
    PairScatter,
    fit_log_variance,
    smoothed_reliability,
)

SEEDS = st.integers(0, 10_000)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scatter(features: int = 6, seed: int = 0) -> PairScatter:
    """Pairs that differ much in the first feature and little in the last."""
    return PairScatter.of(normal(seed, 300, features) * torch.logspace(0, -2, features, dtype=torch.float64))


def members_of(x: Tensor, covariance: Tensor, count: int, seed: int) -> Tensor:
    """(rows, count) rewards of linear members whose weights have this covariance."""
    return x @ torch.linalg.cholesky(covariance) @ normal(seed, x.shape[1], count)


# Lengths


def test_lengths_against_the_dense_inverse() -> None:
    d, x = normal(1, 40, 6), normal(2, 9, 6)
    s = d.T @ d
    s = s / (s.trace() / 6)
    expected = [((x @ torch.linalg.inv(s + ridge * torch.eye(6).double())) * x).sum(dim=1).log() for ridge in RIDGES]
    torch.testing.assert_close(PairScatter.of(d).lengths(x), torch.stack(expected, dim=1), rtol=1e-10, atol=1e-12)


def test_directions_outside_of_the_basis_count_as_unseen() -> None:
    d, x = normal(1, 4, 6), normal(2, 9, 6)  # four pairs show four directions of six
    whole = PairScatter.of(d)
    kept = PairScatter(whole.basis[:, -4:], whole.values[-4:])
    torch.testing.assert_close(kept.lengths(x), whole.lengths(x), rtol=1e-8, atol=1e-10)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_difference_twice_as_long_has_four_times_the_square(seed: int, factor: float) -> None:
    x = normal(seed, 5, 6)
    one = scatter()
    torch.testing.assert_close(one.lengths(factor * x), one.lengths(x) + 2 * math.log(factor), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.lengths(-x), one.lengths(x))


def test_pairs_must_differ() -> None:
    with pytest.raises(DataError, match="both sides of every pair have equal features"):
        PairScatter.of(torch.zeros(3, 2))


# The regression


def test_the_regression_is_ridge_regression() -> None:
    """Coefficients against numpy's normal equations at the penalty whose leave-one-out error, row by row, is least."""
    x, s2 = scatter().lengths(normal(3, 60, 6)), normal(4, 60, 5).var(dim=1, correction=1)
    found = fit_log_variance(x, s2, 4.0)
    lengths, y = x.numpy(), s2.log().numpy() - special.digamma(2.0) + math.log(2.0)
    z = (lengths - lengths.mean(axis=0)) / lengths.std(axis=0, ddof=1)

    def solve(rows: np.ndarray, strength: float) -> np.ndarray:
        a = np.column_stack([np.ones(len(rows)), z[rows]])
        penalty = np.diag([0.0, *[strength] * 3])
        return np.linalg.solve(a.T @ a + penalty, a.T @ y[rows])

    everything = np.arange(60)
    errors = []
    for strength in _STRENGTHS:
        left = [y[i] - np.array([1.0, *z[i]]) @ solve(everything[everything != i], strength) for i in range(60)]
        errors.append(np.mean(np.square(left)))
    expected = solve(everything, _STRENGTHS[int(np.argmin(errors))])
    np.testing.assert_allclose(np.array(found.slopes) * lengths.std(axis=0, ddof=1), expected[1:], rtol=1e-6)
    np.testing.assert_allclose(found.log_of(x).numpy(), np.column_stack([np.ones(60), z]) @ expected, rtol=1e-6)


def test_the_level_is_that_of_the_variance() -> None:
    """ln s² of three members lies ψ(1) − ln 1 = −.58 below ln σ² on average; 20,000 rows tell it to .03."""
    x = normal(5, 20_000, 6)
    found = fit_log_variance(scatter().lengths(x), sample_variance(math.sqrt(3) * normal(6, 20_000, 3)), 2.0)
    assert float(found.of(scatter().lengths(x)).log().mean()) == pytest.approx(math.log(3), abs=0.03)


@pytest.mark.parametrize("members", [5, 10, 50])
def test_smoothing_finds_the_variance_under_the_noise(members: int) -> None:
    """Linear members with a posterior's covariance: the squared error of ln s² falls to a tenth and less."""
    d = normal(1, 300, 20) * torch.logspace(0, -2, 20, dtype=torch.float64)
    covariance = torch.linalg.inv(0.2 * d.T @ d + 3 * torch.eye(20).double())
    x = normal(7, 400, 20) * torch.rand(400, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    lengths = PairScatter.of(d).lengths(x)
    truth = (x @ covariance * x).sum(dim=1).log()
    s2 = sample_variance(members_of(x, covariance, members, 9))
    smooth = fit_log_variance(lengths, s2, members - 1.0).of(lengths)
    raw, found = (float((v.log() - truth).square().mean()) for v in (s2, smooth))
    assert found < 0.1 * raw
    assert float(torch.corrcoef(torch.stack([smooth.log(), truth]))[0, 1]) > 0.97


def test_rows_without_a_variance_do_not_count() -> None:
    x = normal(10, 50, 6)
    lengths, s2 = scatter().lengths(x), sample_variance(normal(11, 50, 5))
    x[:3] = 0.0
    more, lacking = scatter().lengths(x), s2.clone()
    lacking[3:6], lacking[6:8] = 0.0, math.nan
    freedom = torch.full((50,), 4.0, dtype=torch.float64)
    freedom[8] = 0.0
    found = fit_log_variance(more, lacking, freedom)
    assert found == fit_log_variance(lengths[9:], s2[9:], 4.0)
    with pytest.raises(VarianceError, match="at least 3 completions with a variance, got 2"):
        fit_log_variance(lengths[:2], s2[:2], 4.0)


def test_nothing_between_a_completion_and_its_anchor_is_no_variance() -> None:
    found = LogVariance(0.0, (1.0, -1.0, 1.0)).of(scatter().lengths(torch.zeros(2, 6)))
    assert found.tolist() == [0.0, 0.0]


@given(SEEDS, st.floats(1e-2, 1e2))
def test_rewards_of_another_scale(seed: int, factor: float) -> None:
    lengths, raw = scatter().lengths(normal(seed, 40, 6)), normal(seed + 1, 40, 5)
    one, other = (fit_log_variance(lengths, sample_variance(x), 4.0).of(lengths) for x in (raw, factor * raw))
    torch.testing.assert_close(other, factor**2 * one, rtol=1e-6, atol=0)


def test_a_fit_as_notes_and_back() -> None:
    fitted = LogVariance(-1.25, (0.5, 0.25, -0.125))
    assert LogVariance.from_notes({"weight_cv": 1.0, **fitted.to_notes()}) == fitted
    assert LogVariance.from_notes({"weight_cv": 1.0}) is None


# Reliability


def test_reliability_of_members_whose_variance_differs() -> None:
    d = normal(1, 300, 20) * torch.logspace(0, -2, 20, dtype=torch.float64)
    covariance = torch.linalg.inv(0.2 * d.T @ d + 3 * torch.eye(20).double())
    x = normal(7, 400, 20) * torch.rand(400, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    for members, least in ((6, 0.8), (50, 0.98)):
        found = smoothed_reliability(members_of(x, covariance, members, 12), PairScatter.of(d).lengths(x))
        assert least < found < 1 + 1e-12


def test_reliability_of_noise_is_not_taken_for_a_signal() -> None:
    """Equal variances: of 20 sets of members at most one in ten comes out above .6 by chance."""
    lengths = scatter().lengths(normal(13, 400, 6))
    found = [smoothed_reliability(normal(100 + i, 400, 10), lengths, splits=8) for i in range(20)]
    assert sum(value > 0.6 for value in found) <= 2
    assert float(np.nanmean(found)) < 0.2


def test_reliability_unknown() -> None:
    lengths = scatter().lengths(normal(13, 40, 6))
    assert math.isnan(smoothed_reliability(normal(14, 40, 3), lengths))
    assert math.isnan(smoothed_reliability(normal(14, 2, 8), lengths[:2]))
    lacking = normal(15, 40, 6)
    whole = smoothed_reliability(lacking[5:], lengths[5:])
    lacking[:5, 2] = math.nan
    assert smoothed_reliability(lacking, lengths) == whole
