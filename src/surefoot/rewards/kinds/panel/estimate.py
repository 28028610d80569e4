r"""A panel's reward with its variance, from its judges' centred and scaled ratings; pure arithmetic.

A *voice* is the mean over the judges of one family that scored the row; F voices u_g have noise η_g (of the
replies and wordings behind it) and weights W_g, made to sum to 1 over the families that scored. The model behind
it: u_g is the reward, plus what family g makes of this completion (variance φ over families), plus noise. Then

- the reward is ū = Σ W u;
- B = Σ W (u − ū)² / (1 − ΣW²), the sample variance where weights are equal. E[B] = φ + Σ W(1 − W)η / (1 − ΣW²), so
  *between* = B − (that noise) is unbiased for φ, and negative at times;
- *within* = Σ W²η, the noise of ū;
- the variance of ū is ΣW² between + within: B/F where weights are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.ensemble import moderate
from surefoot.types import VariancePrior

__all__ = ["Components", "Judged", "components", "membership", "voices"]


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows as the judges of a panel rated them.

    Args:
        rewards: (batch, judges) mean ratings, centred by the prompt's anchor; NaN where unscored.
        noise: (batch, judges) variance of those that the judge's replies and wordings show, unbiased; NaN if unknown.
        anchors: (batch, judges) what was subtracted.
    """

    rewards: Float[Tensor, "batch judges"]
    noise: Float[Tensor, "batch judges"]
    anchors: Float[Tensor, "batch judges"]

    def scaled(self, scales: Float[Tensor, "judges"]) -> Judged:
        """Each judge divided by its scale, its noise by the square."""
        return Judged(self.rewards / scales, self.noise / scales.square(), self.anchors / scales)


@dataclass(frozen=True, eq=False)
class Components:
    """Reward and variances of each row, in the scaled judges' unit; NaN where fewer than two families scored it.

    Args:
        mean: (batch,) ū.
        spread: (batch,) B; moderated where a prior was given.
        between: (batch,) of families about their mean, unbiased without a prior; NaN where a noise is unknown.
        within: (batch,) of the mean, by the noise of replies and wordings; NaN where a noise is unknown.
        share: (batch,) ΣW²: what the mean over families keeps of `between`.
        freedom: (batch,) families that scored, less one.
    """

    mean: Float[Tensor, "batch"]
    spread: Float[Tensor, "batch"]
    between: Float[Tensor, "batch"]
    within: Float[Tensor, "batch"]
    share: Float[Tensor, "batch"]
    freedom: Float[Tensor, "batch"]

    @property
    def variance(self) -> Float[Tensor, "batch"]:
        """(batch,) of the mean: never below what its noise alone makes it, as a difference of estimates may be.

        Where a noise is unknown it is a part of B, and is counted there.
        """
        known = self.share * self.between.clamp(min=0) + self.within
        return torch.where(known.isnan(), self.share * self.spread, known)


def membership(families: Sequence[str]) -> Float[Tensor, "families judges"]:
    """1 where a judge is of the family, else 0; families in the order of their first judge, float64.

    >>> membership(["a", "b", "a"]).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    names = list(dict.fromkeys(families))
    return torch.tensor([[float(family == name) for family in families] for name in names], dtype=torch.float64)


def voices(
    judged: Judged, members: Float[Tensor, "families judges"]
) -> tuple[Float[Tensor, "batch families"], Float[Tensor, "batch families"]]:
    """Mean of each family's judges that scored the row, and its noise variance; NaN where none did, or if unknown."""
    scored = ~judged.rewards.isnan()
    of_family = members.T
    counts = scored.to(torch.float64) @ of_family
    unknown = (scored & judged.noise.isnan()).to(torch.float64) @ of_family > 0
    noise = torch.where(scored, judged.noise, 0.0).nan_to_num(0.0) @ of_family / counts.square()
    return judged.rewards.nan_to_num(0.0) @ of_family / counts, torch.where(unknown, torch.nan, noise)


def components(
    judged: Judged,
    members: Float[Tensor, "families judges"],
    weights: Float[Tensor, "families"],
    prior: VariancePrior | None = None,
) -> Components:
    """Reward and variances by source.

    Args:
        judged: scaled.
        weights: of the families, positive.
        prior: moderates B; None leaves the variances as they are, unbiased.
    """
    said, noise = voices(judged, members)
    scored = ~said.isnan()
    freedom = scored.sum(dim=1).to(torch.float64) - 1
    w = torch.where(scored, weights, 0.0)
    w = torch.where(freedom[:, None] > 0, w / w.sum(dim=1, keepdim=True), torch.nan)
    mean = (w * said.nan_to_num(0.0)).sum(dim=1)
    share = w.square().sum(dim=1)
    squares = torch.where(scored, (said - mean[:, None]).square(), 0.0)
    spread = (w * squares).sum(dim=1) / (1 - share)
    if prior is not None:
        spread = torch.where(freedom > 0, moderate(spread, freedom.clamp(min=0), prior), torch.nan)
    known = torch.where(scored, noise, 0.0)
    left = (w * (1 - w) * known).sum(dim=1) / (1 - share)
    within = (w.square() * known).sum(dim=1)
    return Components(mean, spread, spread - left, within, share, freedom)
