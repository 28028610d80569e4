"""The posterior against conditioning of the joint normal; its probabilities and its variance against simulation."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from surefoot.rewards.kinds.adaptive_judge.posterior import margin_posterior, posterior

NAN = float("nan")


def conditioned(means: NDArray[np.float64], noise: NDArray[np.float64], spread: float) -> tuple[NDArray, NDArray]:
    """Mean and covariance of θ given the means of one prompt: the prior's precision ignores the level."""
    size = len(means)
    prior = (np.eye(size) - 1 / size) / spread
    covariance = np.linalg.inv(prior + np.diag(1 / noise))
    return covariance @ (means / noise), covariance


def test_it_is_the_joint_normal_s_conditional() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5):
        means, noise = rng.normal(5, 2, size), rng.uniform(0.2, 3, size)
        mean, covariance = conditioned(means, noise, 0.7)
        found = posterior(torch.tensor(means), torch.tensor(noise), torch.zeros(size, dtype=torch.long), 0.7)
        assert found.mean.numpy() == pytest.approx(mean, rel=1e-5)
        assert found.variance.numpy() == pytest.approx(covariance.diagonal(), rel=1e-5)
        joint = np.diag(found.own.numpy()) + np.outer(found.shared.numpy(), found.shared.numpy())
        assert joint == pytest.approx(covariance, rel=1e-5, abs=1e-6)


def test_probabilities_are_those_of_the_conditional() -> None:
    rng = np.random.default_rng(1)
    means, noise = rng.normal(5, 1, 4), rng.uniform(0.2, 3, 4)
    mean, covariance = conditioned(means, noise, 0.7)
    # Another prompt's rows stand between and around.
    places = torch.tensor([1, 3, 4, 6])
    all_means, all_noise = torch.full((8,), 3.0).double(), torch.full((8,), 0.5).double()
    all_means[places], all_noise[places] = torch.tensor(means), torch.tensor(noise)
    groups = torch.ones(8, dtype=torch.long).index_fill(0, places, 0)
    found = posterior(all_means, all_noise, groups, 0.7)
    best, others, rivals = int(mean.argmax()), [], []
    for i in range(4):
        contrast = np.where(np.arange(4) == i, 1.0, -1 / 3)
        others.append(norm.cdf(-abs(contrast @ mean) / np.sqrt(contrast @ covariance @ contrast)))
        contrast = np.eye(4)[i] - np.eye(4)[best]
        rivals.append(norm.cdf(contrast @ mean / np.sqrt(contrast @ covariance @ contrast)) if i != best else 0.0)
    rivals[best] = max(rivals)
    assert found.wrong_about_others()[places].numpy() == pytest.approx(np.array(others), rel=1e-5)
    assert found.wrong_about_best()[places].numpy() == pytest.approx(np.array(rivals), rel=1e-5)


def test_what_is_unread_is_open_and_what_is_alone_has_no_comparison() -> None:
    groups = torch.tensor([0, 0, 0, 1, 2, 2])
    means = torch.tensor([5.0, NAN, 6.0, 5.0, NAN, NAN], dtype=torch.float64)
    found = posterior(means, torch.where(means.isnan(), NAN, 1.0), groups, 1.0)
    for wrong in (found.wrong_about_others(), found.wrong_about_best()):
        assert wrong[[1, 4, 5]].tolist() == [0.5] * 3
        assert wrong[3].isnan()
        assert 0 < wrong[0] < 0.5
        assert wrong[0] == pytest.approx(float(wrong[2]))
    pair = posterior(means[[0, 2]], torch.ones(2).double(), groups[[0, 2]], 1.0)
    assert found.mean[[0, 2]].tolist() == pair.mean.tolist()
    assert found.mean[3] == 5
    assert found.variance[3] == 1


def test_ties_that_are_known_exactly_are_open() -> None:
    found = posterior(torch.tensor([5.0, 5.0]), torch.zeros(2), torch.zeros(2, dtype=torch.long), 1.0)
    assert found.wrong_about_others().tolist() == [0.5, 0.5]
    assert found.wrong_about_best().tolist() == [0.5, 0.5]


def test_the_margin_is_the_pair_s() -> None:
    mean, covariance = conditioned(np.array([6.0, 4.5]), np.array([0.5, 2.0]), 0.7)
    difference, variance = margin_posterior(torch.tensor([1.5]).double(), torch.tensor([2.5]).double(), 0.7)
    contrast = np.array([1.0, -1.0])
    assert float(difference) == pytest.approx(contrast @ mean, rel=1e-5)
    assert float(variance) == pytest.approx(contrast @ covariance @ contrast, rel=1e-5)


@pytest.mark.parametrize("size", [2, 8])
def test_mean_and_variance_hold_where_reading_was_stopped(size: int) -> None:
    """Ratings are read until their comparison is 90% sure: the plain mean's error isn't what its noise says there."""
    prompts, most, noise, spread = 4000, 4, 2.0, 1.0
    rng = torch.Generator().manual_seed(size)
    groups = torch.arange(prompts).repeat_interleave(size)
    truth = torch.randn(prompts * size, generator=rng).double() + 3 * torch.randn(prompts, generator=rng)[groups]
    ratings = truth + noise**0.5 * torch.randn(most, prompts * size, generator=rng).double()
    counts = torch.ones(prompts * size, dtype=torch.long)

    def means() -> torch.Tensor:
        return ratings.cumsum(dim=0)[counts - 1, torch.arange(len(truth))] / counts

    for _ in range(most - 1):
        known = posterior(means(), noise / counts, groups, spread)
        counts = counts + ((known.wrong_about_others() > 0.1) & (counts < most))
    known, once = posterior(means(), noise / counts, groups, spread), counts == 1
    assert 0.05 < once.double().mean() < 0.9
    for some in (once, counts == most):
        error = (known.mean - truth)[some]
        ratio = error.square() / known.variance[some]
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / some.sum() ** 0.5
        assert abs(error.mean()) < 4 * error.std() / some.sum() ** 0.5
    plain = ((means() - truth).square() * counts / noise)[once]
    assert plain.mean() - 1 > 4 * plain.std() / once.sum() ** 0.5
