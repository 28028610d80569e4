"""Sources without members: one reward model, and a Gaussian posterior that gives its reward a variance.

A scored row is the reward followed by the features that the posterior is about; the variance of a *centred* reward is
the posterior's on centred features, so that what preferences can't see cancels before it is counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import DataError
from surefoot.maths.ensemble import centre
from surefoot.maths.laplace import Covariance
from surefoot.rewards.source import RewardSource, calibrated
from surefoot.types import Calibration, MarginEstimate, RewardEstimate

__all__ = ["GaussianSource", "Term"]


@dataclass(frozen=True, eq=False)
class Term:
    """One posterior over some of the columns.

    Args:
        covariance: of that many weights.
        origin: (features,) mean of the features over the training texts; what a lone completion is centred by.
    """

    covariance: Covariance
    origin: Float[Tensor, "features"]

    @property
    def size(self) -> int:
        return len(self.origin)


class GaussianSource(RewardSource):
    """Reward in column 0, then the features of each term; the terms' variances add up.

    Attributes:
        terms: the posteriors, in the order of their columns.
    """

    terms: Sequence[Term]

    @abstractmethod
    def score(self, prompts, completions):  # type: ignore[no-untyped-def]
        """See `RewardSource.score`."""

    def estimate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> RewardEstimate:
        x = self._checked(scores)
        alone = torch.cat([x.new_zeros(1), *(term.origin.to(x) for term in self.terms)])
        centred = centre(x, groups, alone)
        variance = self._variance(centred[:, 1:])
        scored = ~x[:, 0].isnan()
        return RewardEstimate(
            mean=x[:, 0],
            epistemic=torch.where(scored, variance, torch.nan),
            degrees_of_freedom=torch.full_like(variance, torch.inf),
        )

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """δᵀΣδ of the pair's own difference: the two rewards' errors are correlated, and this knows how."""
        difference = self._checked(chosen) - self._checked(rejected)
        return MarginEstimate(difference[:, 0], self._variance(difference[:, 1:]))

    def calibrate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> Calibration:
        self.calibration = calibrated(self.estimate(scores, groups), self.variance_factor)
        return self.calibration

    def sample_members(
        self, scores: Float[Tensor, "batch columns"], count: int, seed: int = 0
    ) -> Float[Tensor, "batch members"]:
        """Rewards of `count` models drawn from the posterior, the same models for every call with this seed."""
        x = self._checked(scores)
        stream = torch.Generator().manual_seed(seed)
        members = x[:, :1].repeat(1, count)
        first = 1
        for term in self.terms:
            draws = self.variance_factor**0.5 * term.covariance.sample(count, stream)
            members = members + (x[:, first : first + term.size] - term.origin.to(x)) @ draws
            first += term.size
        return members

    def _variance(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows"]:
        first, total = 0, features.new_zeros(len(features))
        for term in self.terms:
            total = total + term.covariance.quadratic(features[:, first : first + term.size])
            first += term.size
        return self.variance_factor * total

    def _checked(self, scores: Float[Tensor, "batch columns"]) -> Tensor:
        wanted = 1 + sum(term.size for term in self.terms)
        if scores.ndim != 2 or scores.shape[1] != wanted:
            raise DataError(f"'{self.name}' reads rows of {wanted} columns, got {tuple(scores.shape)}")
        return scores.to(torch.float64)
