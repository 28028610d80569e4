r"""From rows of readings to a reward with a variance; pure arithmetic.

A row is the mean rating, then for each of W wordings the mean mᵥ, the sample variance s²ᵥ and the number nᵥ of its
replicates. The model behind it is nested: rᵢ, plus what wording v adds to all completions of the prompt, plus an
interaction of wording and completion, plus noise of the replicate.

Each wording is centred by itself over the completions of a prompt, so what it adds to all of them is no variance. Then

- within: s², noise of one replicate about its wording's mean, pooled over wordings; d = Σ(nᵥ − 1);
- B, the sample variance of the centred wordings' means; d = W − 1. E[B] is the interaction's variance plus the noise
  that is left in the means, so *between* = B − noise is unbiased, and negative at times;
- s² of a reply: between + within. s²/n of the mean: B/W, or the noise of the mean where there is one wording.

A centred reward holds a part of its siblings' noise: N(v)ᵢ = (1 − 2/G)vᵢ + v̄/G in a group of G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import DataError
from surefoot.maths.ensemble import centre, fit_prior, moderate
from surefoot.types import VariancePrior

__all__ = ["Components", "Priors", "Readings", "centred_noise", "components", "fit_priors"]


@dataclass(frozen=True, eq=False)
class Readings:
    """Rows taken apart, in float64.

    Args:
        mean: (batch,) NaN where unscored.
        means, variances, counts: (batch, wordings).
    """

    mean: Float[Tensor, "batch"]
    means: Float[Tensor, "batch wordings"]
    variances: Float[Tensor, "batch wordings"]
    counts: Float[Tensor, "batch wordings"]

    @classmethod
    def of(cls, scores: Float[Tensor, "batch columns"], wordings: int) -> Readings:
        if scores.ndim != 2 or scores.shape[1] != 1 + 3 * wordings:
            raise DataError(f"a judge of {wordings} wordings reads rows of {1 + 3 * wordings} columns, got "
                            f"{tuple(scores.shape)}")  # fmt: skip
        x = scores.to(torch.float64)
        parts = x[:, 1:].reshape(len(x), wordings, 3)
        return cls(x[:, 0], parts[..., 0], parts[..., 1], parts[..., 2])

    @property
    def within(self) -> Float[Tensor, "batch"]:
        """s² of a replicate, pooled over wordings by their degrees of freedom; NaN if no wording has one."""
        known = ~self.variances.isnan()
        weights = torch.where(self.counts.isinf(), 1.0, self.counts - 1) * known
        return (weights * self.variances.nan_to_num(0.0)).sum(dim=1) / weights.sum(dim=1)

    @property
    def within_freedom(self) -> Float[Tensor, "batch"]:
        """Σ(nᵥ − 1); infinite where distributions were read."""
        return (self.counts - 1).clamp(min=0).sum(dim=1)

    @property
    def noise_share(self) -> Float[Tensor, "batch"]:
        """Mean of 1/nᵥ over the wordings that have replies: the share of s² that is left in a wording's mean."""
        return torch.where(self.means.isnan(), torch.nan, 1 / self.counts).nanmean(dim=1)


@dataclass(frozen=True)
class Priors:
    """Of the noise within a wording, and of B; None where there is no such variance."""

    within: VariancePrior | None
    between: VariancePrior | None


@dataclass(frozen=True, eq=False)
class Components:
    """Variances of the centred reward, in reward²; NaN where unknown or unscored.

    Args:
        wordings: (batch, wordings) each wording's reward, centred and brought back to one offset of the group.
        within: (batch,) of one replicate about its wording.
        spread: (batch,) B; NaN with one wording.
        noise: (batch,) what is left of `within` in B, or, with one wording, in the mean.
        reply: (batch,) s²: of one reply of one wording.
        mean: (batch,) s²/n: of the mean of all.
        freedom: (batch,) degrees of freedom of B, or with one wording of s².
    """

    wordings: Float[Tensor, "batch wordings"]
    within: Float[Tensor, "batch"]
    spread: Float[Tensor, "batch"]
    noise: Float[Tensor, "batch"]
    reply: Float[Tensor, "batch"]
    mean: Float[Tensor, "batch"]
    freedom: Float[Tensor, "batch"]

    @property
    def between(self) -> Float[Tensor, "batch"]:
        """(batch,) of wordings about their mean, unbiased if the variances are raw; it may be negative."""
        return self.spread - self.noise


def components(
    readings: Readings,
    groups: Int[Tensor, "batch"] | None,
    offsets: Float[Tensor, "wordings"] | None,
    priors: Priors | None = None,
    floor: float = 0.0,
) -> Components:
    """Variances by source.

    Args:
        groups: (batch,) prompt ids; None centres by `offsets`.
        offsets: (wordings,) each wording's mean on the calibration set, for lone completions.
        priors: moderate by these; None leaves the variances as they are, unbiased.
        floor: least variance that readings on a lattice can show; used where moderated only.

    Raises:
        DataError: centring is impossible (`ensemble.centre`).
    """
    centred = centre(readings.means, groups, offsets)
    within, spread = readings.within, _spread(centred)
    freedom = (~centred.isnan()).sum(dim=1).to(torch.float64) - 1
    if priors is not None:
        within = _moderated(within, readings.within_freedom, priors.within, floor)
        spread = _moderated(spread, freedom.clamp(min=0), priors.between, floor)
    share = readings.noise_share
    several = centred.shape[1] > 1
    noise = centred_noise(within * share, groups)
    left = centred_noise(torch.where(share < 1, within * (1 - share), 0.0), groups)
    unscored = readings.mean.isnan() | centred.isnan().all(dim=1)
    values = {
        "within": centred_noise(within, groups),
        "spread": spread,
        "noise": noise,
        "reply": spread + left if several else centred_noise(within, groups),
        "mean": spread / (freedom + 1) if several else noise,
    }
    known = {name: torch.where(unscored, torch.nan, value) for name, value in values.items()}
    wordings = torch.where(unscored[:, None], torch.nan, centred + _offset(readings.means, centred, groups, offsets))
    return Components(wordings, freedom=freedom if several else readings.within_freedom, **known)


def fit_priors(
    readings: Readings,
    groups: Int[Tensor, "batch"] | None,
    offsets: Float[Tensor, "wordings"] | None,
    floor: float,
) -> Priors:
    """Priors of both variances from one set of rows; a distribution that was read needs none.

    Raises:
        VarianceError: fewer than two rows have a variance.
    """
    scored = ~readings.mean.isnan()
    centred = centre(readings.means, groups, offsets)
    freedom = readings.within_freedom
    within, between = None, None
    if bool((freedom > 0).any()) and not bool(freedom.isinf().any()):
        within = fit_prior(_floored(readings.within, floor)[scored], freedom[scored])
    if centred.shape[1] > 1:
        degrees = ((~centred.isnan()).sum(dim=1).to(torch.float64) - 1).clamp(min=0)
        between = fit_prior(_floored(_spread(centred), floor)[scored], degrees[scored])
    return Priors(within, between)


def centred_noise(variances: Float[Tensor, "batch"], groups: Int[Tensor, "batch"] | None) -> Float[Tensor, "batch"]:
    """Variance of each value minus its group's mean, for independent values of these variances.

    N(v)ᵢ = (1 − 2/G)vᵢ + v̄/G over the G known values of the group; vᵢ itself for a value alone, or without groups.

    >>> centred_noise(torch.tensor([1.0, 3.0]), torch.tensor([0, 0])).tolist()
    [1.0, 1.0]
    """
    if groups is None:
        return variances
    _, index = torch.unique(groups, return_inverse=True)
    known = ~variances.isnan()
    empty = variances.new_zeros(int(index.max()) + 1 if len(index) else 0)
    count = empty.index_add(0, index, known.to(variances))[index]
    mean = empty.index_add(0, index, variances.nan_to_num(0.0))[index] / count
    return torch.where(count > 1, (1 - 2 / count) * variances + mean / count, variances)


def _spread(centred: Float[Tensor, "batch wordings"]) -> Float[Tensor, "batch"]:
    """Sample variance over wordings (divisor: wordings − 1); NaN with fewer than two."""
    freedom = (~centred.isnan()).sum(dim=1).to(torch.float64) - 1
    squares = (centred - centred.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    return squares / torch.where(freedom > 0, freedom, torch.nan)


def _offset(
    means: Float[Tensor, "batch wordings"],
    centred: Float[Tensor, "batch wordings"],
    groups: Int[Tensor, "batch"] | None,
    offsets: Float[Tensor, "wordings"] | None,
) -> Float[Tensor, "rows 1"]:
    """What centring took, averaged over wordings; the same for all rows of a group that have the same wordings.

    A row that lacks a wording gets its group's offset and not its own: else a harsh wording's silence would be a gift.
    """
    taken = means - centred
    if groups is None:
        return means.new_zeros(1, 1) if offsets is None else offsets.mean().reshape(1, 1)
    _, index = torch.unique(groups, return_inverse=True)
    known = (~taken.isnan()).to(taken)
    empty = taken.new_zeros(int(index.max()) + 1 if len(index) else 0, taken.shape[1])
    sums, counts = empty.index_add(0, index, taken.nan_to_num(0.0)), empty.index_add(0, index, known)
    return (sums / counts).nanmean(dim=1, keepdim=True)[index]


def _floored(variances: Float[Tensor, "batch"], floor: float) -> Float[Tensor, "batch"]:
    return torch.where(variances.isnan(), torch.nan, variances.clamp(min=floor))


def _moderated(
    variances: Float[Tensor, "batch"], freedom: Float[Tensor, "batch"], prior: VariancePrior | None, floor: float
) -> Float[Tensor, "batch"]:
    if prior is None:
        return variances
    return moderate(_floored(variances, floor), freedom, prior)
