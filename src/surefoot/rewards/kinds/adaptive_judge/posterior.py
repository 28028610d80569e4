r"""Rewards of a prompt's completions after unequally many readings, and which comparison is least sure; arithmetic.

The mean of a completion's readings is mᵢ = θᵢ + noise of variance sᵢ, which is smaller the more readings there are.
Within a prompt θᵢ ~ N(μ, τ²), with a flat prior on the prompt's own level μ. With wᵢ = 1/(τ² + sᵢ), Σ their sum and
μ̂ = Σwm / Σ, the posterior is normal (Gelman et al., Bayesian Data Analysis, 3rd ed., 5.4):

    E[θᵢ] = μ̂ + kᵢ(mᵢ − μ̂),   Cov[θᵢ, θⱼ] = δᵢⱼ kᵢsᵢ + (1 − kᵢ)(1 − kⱼ) / Σ,   kᵢ = τ² / (τ² + sᵢ).

Whoever decides by the readings so far whether there will be another doesn't change the likelihood of those that there
are, so mean and variance hold under any such rule. The plain mean of readings doesn't: where few were enough, they
were few because they happened to lie far out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Posterior", "margin_posterior", "posterior"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior of the completions' true ratings; NaN where a completion has no reading.

    Args:
        mean, variance: (batch,) of θᵢ; rating, rating².
        own: (batch,) kᵢsᵢ, the part of the variance that is the completion's alone.
        shared: (batch,) (1 − kᵢ)/√Σ: two completions of a prompt have the product of theirs as covariance.
        groups: (batch,) numbers of the prompts, from 0.
    """

    mean: Float[Tensor, "batch"]
    variance: Float[Tensor, "batch"]
    own: Float[Tensor, "batch"]
    shared: Float[Tensor, "batch"]
    groups: Int[Tensor, "batch"]

    def wrong_about_others(self) -> Float[Tensor, "batch"]:
        """Probability that a completion lies on the other side of the mean of its prompt's others, (batch,).

        NaN where it has no other; 0.5 where it has no reading itself.
        """
        known = ~self.mean.isnan()
        others = _sums(known.to(self.mean), self.groups) - known.to(self.mean)
        difference = self.mean - (_sums(self.mean, self.groups) - self.mean) / others
        own = self.own + (_sums(self.own, self.groups) - self.own) / others.square()
        shared = self.shared - (_sums(self.shared, self.groups) - self.shared) / others
        wrong = _tail(difference.abs(), own + shared.square())
        return torch.where(known, torch.where(others > 0, wrong, torch.nan), 0.5)

    def wrong_about_best(self) -> Float[Tensor, "batch"]:
        """Probability that a completion is better than the one with the highest mean of its prompt, (batch,).

        That one itself has the highest of these probabilities. NaN and 0.5 as in `wrong_about_others`.
        """
        known = ~self.mean.isnan()
        if not bool(known.any()):
            return torch.full_like(self.mean, 0.5)
        count = int(self.groups.max()) + 1
        least = self.mean.new_full((count,), -math.inf)
        highest = least.scatter_reduce(0, self.groups[known], self.mean[known], "amax")
        place = torch.arange(len(self.mean))
        leads = known & (self.mean == highest[self.groups])
        first = torch.full((count,), len(place)).scatter_reduce(0, self.groups[leads], place[leads], "amin")
        best = first.clamp(max=len(place) - 1)[self.groups]
        spread = self.own + self.own[best] + (self.shared - self.shared[best]).square()
        wrong = _tail(self.mean[best] - self.mean, spread)
        rival = known & (place != best)
        most = least.scatter_reduce(0, self.groups[rival], wrong[rival], "amax")
        leading = torch.where(most.isinf(), torch.nan, most)[self.groups]
        return torch.where(known, torch.where(rival, wrong, leading), 0.5)


def posterior(
    means: Float[Tensor, "batch"], noise: Float[Tensor, "batch"], groups: Int[Tensor, "batch"], spread: float
) -> Posterior:
    """Posterior of each completion given its prompt's readings.

    Args:
        means: mᵢ; NaN where there is no reading.
        noise: sᵢ, variance of mᵢ about θᵢ.
        groups: numbers of the prompts, from 0.
        spread: τ² > 0, variance of θ within a prompt.

    >>> pair = posterior(torch.tensor([6.0, 4.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), 1.0)
    >>> pair.mean.tolist(), pair.wrong_about_others()[0] < 0.16
    ([5.5, 4.5], tensor(True))
    """
    weights = torch.where(means.isnan(), 0.0, 1 / (spread + noise))
    total = _sums(weights, groups)
    level = _sums(weights * means.nan_to_num(0.0), groups) / total
    share = torch.where(means.isnan(), torch.nan, spread / (spread + noise))
    own, shared = share * noise, (1 - share) / total.sqrt()
    return Posterior(level + share * (means - level), own + shared.square(), own, shared, groups)


def margin_posterior(
    difference: Float[Tensor, "pairs"], noise: Float[Tensor, "pairs"], spread: float
) -> tuple[Float[Tensor, "pairs"], Float[Tensor, "pairs"]]:
    """Mean and variance of a pair's true difference of ratings, by the same model.

    Args:
        difference: of the two means of readings.
        noise: its variance about the true one, s₁ + s₂.
        spread: τ² > 0.
    """
    share = 2 * spread / (2 * spread + noise)
    return share * difference, share * noise


def _sums(values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Sum over each row's prompt, without unknown values."""
    count = int(groups.max()) + 1 if len(groups) else 0
    return values.new_zeros(count).index_add_(0, groups, values.nan_to_num(0.0))[groups]


def _tail(distance: Float[Tensor, "batch"], variance: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Φ(−distance/√variance); 0.5 for equal means that are known exactly."""
    return (0.5 * torch.erfc(distance / (2 * variance).sqrt())).nan_to_num(0.5)
