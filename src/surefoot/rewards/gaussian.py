"""Sources without members: one reward model, and a Gaussian posterior that gives its reward a variance.

A scored row is the reward followed by the features that the posterior is about. The variance of an *anchored* reward
is the posterior's on features less the anchor's, so that what preferences can't see cancels before it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.laplace import Covariance
from surefoot.rewards.source import RewardSource, plain_constants
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate

__all__ = ["GaussianSource", "Term"]


@dataclass(frozen=True, eq=False)
class Term:
    """One posterior over some of the columns.

    Args:
        covariance: of that many weights.
        origin: (features,) mean of the features over the training texts, the calibration set's anchor.
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

    @property
    def num_columns(self) -> int:
        return 1 + sum(term.size for term in self.terms)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        assert anchors is not None
        variance = self._variance((scores - anchors.rows)[:, 1:])
        return RewardEstimate(
            mean=scores[:, 0],
            epistemic=torch.where(scores[:, 0].isnan(), torch.nan, variance),
            degrees_of_freedom=torch.full_like(variance, torch.inf),
        )

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """δᵀΣδ of the pair's own difference: the two rewards' errors are correlated, and this knows how."""
        difference = chosen - rejected
        return MarginEstimate(difference[:, 0], self._variance(difference[:, 1:]))

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        return plain_constants(scores[:, 0])

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        return 1.0  # a closed form is the same whatever members would have been drawn

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return torch.cat([torch.zeros(1, dtype=torch.float64), *(term.origin.double() for term in self.terms)])

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
        return total
