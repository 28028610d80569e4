"""Rewards shrunk by their group's reliability: by hand, on average over noise, and against GRPO's advantages."""

import math
from typing import Any

import pytest
import torch

from surefoot.errors import ConfigError, VarianceError
from surefoot.maths.advantages import group_relative
from surefoot.maths.objectives import AggregateName, Objective, aggregate
from surefoot.maths.shrinkage import group_reliability, in_groups
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.types import RewardEstimate

DOUBLE, NAN = torch.float64, float("nan")
TWO = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])


def estimate(reward: torch.Tensor, noise: torch.Tensor, groups: torch.Tensor) -> RewardEstimate:
    free = torch.full_like(reward, math.inf)
    return RewardEstimate(mean=reward, epistemic=noise, degrees_of_freedom=free, groups=groups)


def test_by_hand() -> None:
    reward = torch.tensor([0.0, 10, 0, 20, 2, 10, 2, 20, 1, 15], dtype=DOUBLE)
    noise = torch.tensor([0.2, 5, 0.8, 5, 0.5, 5, 0.5, 5, 0.5, 5], dtype=DOUBLE)
    centred, variance = in_groups(reward, TWO)
    assert variance.tolist() == pytest.approx([1.0, 25.0] * 5)
    assert centred[:4].tolist() == pytest.approx([-1.0, -5.0, -1.0, 5.0])
    reliability = group_reliability(reward, noise, TWO)
    assert reliability.tolist() == pytest.approx([1 - 0.5 * 0.5, 1 - 0.5 * 5 / 25] * 5)
    shrunken = aggregate(estimate(reward, noise, TWO), Objective("shrunken", weights="none"))
    assert shrunken[:4].tolist() == pytest.approx([1 - 0.75, 15 - 0.9 * 5, 1 - 0.75, 15 + 0.9 * 5])


def test_reliability_is_unbiased_for_normal_rewards() -> None:
    """E[1 − (G − 3)/(G − 1) · v/s²] = τ²/(τ² + v), seen where it is hardly ever cut at 0."""
    stream = torch.Generator().manual_seed(0)
    groups, size, tau, noise = 20_000, 16, 3.0, 1.0
    reward = (tau**2 + noise) ** 0.5 * torch.randn(groups * size, dtype=DOUBLE, generator=stream)
    place = torch.arange(groups).repeat_interleave(size)
    found = group_reliability(reward, torch.full_like(reward, noise), place)
    assert float((found == 0).double().mean()) < 1e-3
    assert float(found.mean()) == pytest.approx(tau**2 / (tau**2 + noise), abs=0.002)


def test_shrunken_rewards_are_nearer_to_the_truth() -> None:
    stream = torch.Generator().manual_seed(1)
    groups, size = 4_000, 8
    place = torch.arange(groups).repeat_interleave(size)
    for tau in (0.2, 1.0, 3.0):
        truth = tau * torch.randn(groups * size, dtype=DOUBLE, generator=stream)
        reward = truth + torch.randn(groups * size, dtype=DOUBLE, generator=stream)
        found = aggregate(estimate(reward, torch.ones_like(reward), place), Objective("shrunken", weights="none"))
        centre = in_groups(truth, place)[0]
        error, plain = (float((in_groups(given, place)[0] - centre).square().mean()) for given in (found, reward))
        assert error < 0.99 * plain


def test_a_group_of_noise_alone_teaches_nothing() -> None:
    """GRPO's advantages have the same spread in both groups; scaled by reliability they vanish in the noisy one."""
    reward = torch.tensor([1.0, 0.1, 2.0, 0.2, 3.0, 0.3, 4.0, 0.4, 5.0, 0.5], dtype=DOUBLE)
    noise = torch.tensor([1e-4, 1.0] * 5, dtype=DOUBLE)
    scaled = aggregate(estimate(reward, noise, TWO), Objective("shrunken_scaled", weights="none"))
    assert float(scaled[1::2].abs().max()) == 0.0
    stock = group_relative(reward[::2], 5, "group")
    torch.testing.assert_close(scaled[::2], stock * (1 - 0.5 * 1e-4 / 2.5) ** 0.5)


@pytest.mark.parametrize("name", ["shrunken", "shrunken_scaled"])
def test_without_noise_nothing_changes(name: AggregateName) -> None:
    reward = torch.randn(10, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    found = aggregate(estimate(reward, torch.zeros_like(reward), TWO), Objective(name, weights="none"))
    order = torch.argsort(TWO, stable=True)
    expected = (
        reward
        if name == "shrunken"
        else torch.empty_like(reward).index_copy_(0, order, group_relative(reward[order], 5, "group"))
    )
    torch.testing.assert_close(found, expected)


def test_what_is_unknown_is_not_shrunk() -> None:
    reward = torch.tensor([0.0, 1, 2, 3, 4, 5, NAN, 9, 8], dtype=DOUBLE)
    noise = torch.tensor([1.0, 1, 1, 1, NAN, 1, 1, 1, 1], dtype=DOUBLE)
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    found = group_reliability(reward, noise, groups)
    assert found.tolist() == [1.0] * 9  # three rows; an unknown variance; one row
    known = group_reliability(reward, torch.ones(9, dtype=DOUBLE), groups)
    spread = torch.tensor([3.0, 4, 5, 9], dtype=DOUBLE).var()
    assert known[3:8].tolist() == pytest.approx([float(1 - 1 / 3 / spread)] * 5)  # four are scored
    shrunken = aggregate(estimate(reward, torch.ones(9, dtype=DOUBLE), groups), Objective("shrunken", weights="none"))
    assert shrunken.isnan().tolist() == reward.isnan().tolist()


def test_equal_rewards() -> None:
    reward, groups = torch.full((5,), 2.0, dtype=DOUBLE), torch.zeros(5, dtype=torch.long)
    for noise, share in ((0.0, 1.0), (1.0, 0.0)):
        assert group_reliability(reward, torch.full_like(reward, noise), groups).tolist() == [share] * 5


def test_groups_are_needed() -> None:
    bare = RewardEstimate(torch.zeros(2), epistemic=torch.ones(2), degrees_of_freedom=torch.full((2,), math.inf))
    with pytest.raises(VarianceError, match="give the groups"):
        aggregate(bare, Objective("shrunken", weights="none"))


def test_grpo_does_not_divide_by_the_noise_again() -> None:
    settings: dict[str, Any] = {
        "output_dir": "x",
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
    }
    assert VarianceAwareGRPOConfig(**settings, preset="shrunken_scaled").scale_rewards == "none"
    assert VarianceAwareGRPOConfig(**settings, preset="mean").scale_rewards == "group"
    with pytest.raises(ConfigError, match="found to be noise"):
        VarianceAwareGRPOConfig(**settings, preset="shrunken", scale_rewards="group")
