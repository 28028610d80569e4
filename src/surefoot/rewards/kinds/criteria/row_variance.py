"""Variances of scored rows, raw and moderated, from replies or from criteria; pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.maths.ensemble import fit_prior, moderate
from surefoot.rewards.kinds.criteria.rows import FIRST
from surefoot.rewards.kinds.criteria.weighted_sum import paired_spread
from surefoot.types import Anchors, VariancePrior

__all__ = ["RowVariance"]


@dataclass(frozen=True, eq=False)
class RowVariance:
    """Variances of a batch, in reward²; NaN where unknown or unscored.

    Args:
        raw: (batch,) unbiased.
        freedom: (batch,) degrees of freedom; 0 where the variance is unknown, infinite where it is exactly 0.
        floor: (batch,) least variance that equal answers can show; used where moderated only.
        scored: (batch,) whether there is a reward.
    """

    raw: Float[Tensor, "batch"]
    freedom: Float[Tensor, "batch"]
    floor: Float[Tensor, "batch"]
    scored: Bool[Tensor, "batch"]

    @classmethod
    def of_replies(cls, rows: Float[Tensor, "batch columns"]) -> RowVariance:
        """How the replies differ; nothing is centred, since their noise is that of each completion alone."""
        return cls(rows[:, 1], torch.where(rows[:, 1].isnan(), 0.0, rows[:, 3]), rows[:, 2], ~rows[:, 0].isnan())

    @classmethod
    def of_criteria(cls, rows: Float[Tensor, "batch columns"], anchors: Anchors) -> RowVariance:
        """How the criteria differ, each contribution paired with the anchor's (`paired_spread`)."""
        scored, centred = ~rows[:, 0].isnan(), (rows - anchors.rows)[:, FIRST:]
        freedom = ((~centred.isnan()).sum(dim=1).to(rows) - 1).clamp(min=0)
        return cls(torch.where(scored, paired_spread(centred), torch.nan), freedom, rows[:, 2], scored)

    @property
    def floored(self) -> Float[Tensor, "batch"]:
        return torch.where(self.raw.isnan(), torch.nan, torch.maximum(self.raw, self.floor))

    def prior(self) -> VariancePrior | None:
        """The prior of these variances; None where all of them are known exactly.

        Raises:
            VarianceError: fewer than two rows have a variance, or all are 0.
        """
        noisy = self.scored & ~self.freedom.isinf()
        return fit_prior(self.floored[noisy], self.freedom[noisy]) if bool(noisy.any()) else None

    def moderated(self, prior: VariancePrior | None) -> Float[Tensor, "batch"]:
        """(batch,) variances drawn towards the prior, but for those that are known exactly."""
        if prior is None:
            return self.raw
        exact = self.freedom.isinf()
        moderated = moderate(self.floored, torch.where(exact, 0.0, self.freedom), prior)
        return torch.where(self.scored, torch.where(exact, self.raw, moderated), torch.nan)
