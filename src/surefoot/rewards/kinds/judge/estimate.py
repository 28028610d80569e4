r"""A judge's rewards with their variance, from rows of readings; pure arithmetic.

A row is the mean rating, then for each of W wordings the mean mᵥ, the sample variance s²ᵥ and the number nᵥ of its
replicates. The model behind it is nested: rᵢ, plus what wording v adds to all completions of the prompt, plus an
interaction of wording and completion, plus noise of the replicate.

An anchor is the mean of such rows over M completions of the prompt, column by column. Each wording is centred by the
anchor's mean of that wording, so what it adds to all completions of the prompt is no variance. Then

- within: s², noise of one replicate about its wording's mean, pooled over wordings; d = Σ(nᵥ − 1);
- B, the sample variance of the centred wordings' means; d = W − 1. E[B] is the interaction's variance plus the noise
  that is left in the means, so *between* = B − noise is unbiased, and negative at times;
- s² of a reply: between + within. s²/n of the mean: B/W, or the noise of the mean where there is one wording.

A centred reward holds the noise of its anchor as well: vᵢ + v̄/M, v̄ the mean of v over the anchor's completions. Where
the row is one of these completions, its own noise cancels in part: (1 − 2/M)vᵢ + v̄/M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.ensemble import centre, fit_prior, moderate
from surefoot.types import Anchors, Calibration, VariancePrior

__all__ = ["Components", "Priors", "Readings", "centred_noise", "components", "exact_row", "fit_priors"]

_CERTAIN = 1e9
"""Stands for infinite prior degrees of freedom in a calibration's notes, which are plain numbers."""


@dataclass(frozen=True, eq=False)
class Readings:
    """Columns of scored rows by name, of completions or of anchors, in float64.

    Args:
        mean: (batch,) NaN where unscored.
        means, variances, counts: (batch, wordings); of an anchor each is a mean over its completions.
    """

    mean: Float[Tensor, "batch"]
    means: Float[Tensor, "batch wordings"]
    variances: Float[Tensor, "batch wordings"]
    counts: Float[Tensor, "batch wordings"]

    @classmethod
    def of(cls, scores: Float[Tensor, "batch columns"], wordings: int) -> Readings:
        x = scores.to(torch.float64)
        parts = x[:, 1:].reshape(len(x), wordings, 3)
        return cls(x[:, 0], parts[..., 0], parts[..., 1], parts[..., 2])

    @property
    def within(self) -> Float[Tensor, "batch"]:
        """s² of a replicate, pooled over wordings by their degrees of freedom; NaN if no wording has one."""
        known = ~self.variances.isnan()
        # An anchor counts 0 for a completion without a reply, so its mean count can be below 1.
        weights = torch.where(self.counts.isinf(), 1.0, (self.counts - 1).clamp(min=0)) * known
        return (weights * self.variances.nan_to_num(0.0)).sum(dim=1) / weights.sum(dim=1)

    @property
    def within_freedom(self) -> Float[Tensor, "batch"]:
        """Σ(nᵥ − 1); infinite where distributions were read."""
        return (self.counts - 1).clamp(min=0).sum(dim=1)

    @property
    def noise_share(self) -> Float[Tensor, "batch"]:
        """Mean of 1/nᵥ over the wordings that have replies: the share of s² that is left in a wording's mean.

        Of an anchor, 1 over the mean count: divided by M, that is 1 over all its replies in that wording.
        """
        return torch.where(self.means.isnan(), torch.nan, 1 / self.counts).nanmean(dim=1)

    def noise(self, priors: Priors | None, floor: float) -> Noise:
        """The noise of these rows; moderated unless `priors` is None."""
        within = self.within
        if priors is not None:
            within = _moderated(within, self.within_freedom, priors.within, floor)
        return Noise(within, self.noise_share)


@dataclass(frozen=True)
class Priors:
    """Variance priors of the noise within a wording and of B; None where there is no such variance."""

    within: VariancePrior | None
    between: VariancePrior | None

    @classmethod
    def of_calibration(cls, calibration: Calibration, wordings: int) -> Priors:
        """The priors that a calibration holds; `within` is in its notes."""
        notes, within = calibration.notes, None
        if "within_variance" in notes:
            freedom = notes["within_freedom"]
            within = VariancePrior(math.inf if freedom >= _CERTAIN else freedom, notes["within_variance"])
        return cls(within, calibration.prior if wordings > 1 else None)

    @property
    def notes(self) -> dict[str, float]:
        """`within` as plain numbers, for a calibration's notes."""
        if self.within is None:
            return {}
        freedom = min(self.within.degrees_of_freedom, _CERTAIN)
        return {"within_freedom": freedom, "within_variance": self.within.variance}


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise of the replicates.

    Args:
        one: (batch,) variance of a single replicate about its wording's mean.
        share: (batch,) of it that the mean over a wording's replicates keeps.
    """

    one: Float[Tensor, "batch"]
    share: Float[Tensor, "batch"]

    @property
    def kept(self) -> Float[Tensor, "batch"]:
        """Noise variance of a wording's mean."""
        return self.one * self.share

    @property
    def averaged_out(self) -> Float[Tensor, "batch"]:
        """Noise variance of a replicate less that of its wording's mean; 0 where there is one replicate."""
        return torch.where(self.share < 1, self.one * (1 - self.share), 0.0)


@dataclass(frozen=True, eq=False)
class Components:
    """Variances of the centred reward, in reward²; NaN where unknown or unscored.

    Args:
        wordings: (batch, wordings) each wording's reward, centred and brought back to one offset of the anchor.
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


def components(readings: Readings, anchors: Anchors, priors: Priors | None = None, floor: float = 0.0) -> Components:
    """Variances by source.

    Args:
        anchors: of each row, all known.
        priors: moderate by these; None leaves the variances as they are, unbiased.
        floor: least variance that readings on a lattice can show; used where moderated only.

    Raises:
        DataError: a rating is infinite.
    """
    anchor = Readings.of(anchors.rows, readings.means.shape[1])
    centred = centre(readings.means, anchor.means)
    spread = _spread(centred)
    freedom = (~centred.isnan()).sum(dim=1).to(torch.float64) - 1
    if priors is not None:
        spread = _moderated(spread, freedom.clamp(min=0), priors.between, floor)
    ours, theirs = (side.noise(priors, floor) for side in (readings, anchor))
    within = centred_noise(ours.one, theirs.one, anchors)
    noise = centred_noise(ours.kept, theirs.kept, anchors)
    left = centred_noise(ours.averaged_out, theirs.averaged_out, anchors)
    several = centred.shape[1] > 1
    unscored = readings.mean.isnan() | centred.isnan().all(dim=1)
    values = {
        "within": within,
        "spread": spread,
        "noise": noise,
        "reply": spread + left if several else within,
        "mean": spread / (freedom + 1) if several else noise,
    }
    known = {name: torch.where(unscored, torch.nan, value) for name, value in values.items()}
    # The anchor's offset, not the row's: otherwise a row gains reward when a low-rating wording is missing.
    wordings = centred + anchor.means.nanmean(dim=1, keepdim=True)
    wordings = torch.where(unscored[:, None], torch.nan, wordings)
    return Components(wordings, freedom=freedom if several else readings.within_freedom, **known)


def fit_priors(readings: Readings, anchors: Anchors, floor: float) -> Priors:
    """Priors of both variances from one set of rows; a distribution that was read needs none.

    Args:
        anchors: of each row, all known.
        floor: variances below it are raised to it.

    Raises:
        VarianceError: fewer than two rows have a variance.
    """
    scored = ~readings.mean.isnan()
    centred = centre(readings.means, Readings.of(anchors.rows, readings.means.shape[1]).means)
    freedom = readings.within_freedom
    within, between = None, None
    if bool((freedom > 0).any()) and not bool(freedom.isinf().any()):
        within = fit_prior(_floored(readings.within, floor)[scored], freedom[scored])
    if centred.shape[1] > 1:
        degrees = ((~centred.isnan()).sum(dim=1).to(torch.float64) - 1).clamp(min=0)
        between = fit_prior(_floored(_spread(centred), floor)[scored], degrees[scored])
    return Priors(within, between)


def exact_row(means: Float[Tensor, "wordings"]) -> Float[Tensor, "columns"]:
    """Row of an anchor whose wordings have these means and no noise, as over a large set of completions."""
    wordings = torch.stack([means, torch.zeros_like(means), torch.full_like(means, torch.inf)], dim=1)
    return torch.cat([means.mean()[None], wordings.flatten()])


def centred_noise(
    variances: Float[Tensor, "batch"], of_anchor: Float[Tensor, "batch"], anchors: Anchors
) -> Float[Tensor, "batch"]:
    """Variance of each row's value minus its anchor, for independent values.

    vᵢ + v̄/M, and (1 − 2/M)vᵢ + v̄/M where the anchor is the mean of M values with the row's own among them.

    Args:
        variances: (batch,) vᵢ of each row's value, in reward².
        of_anchor: (batch,) v̄, the mean of v over the anchor's completions; NaN (unknown) takes the row's own.
        anchors: how many completions they are the mean of, and whether they hold the row.

    >>> pair = Anchors(torch.zeros(2, 1), "group", torch.tensor([2.0, 2.0]), holds_own=True)
    >>> centred_noise(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), pair).tolist()
    [1.0, 1.0]
    >>> drawn = Anchors(torch.zeros(2, 1), "reference", torch.tensor([4.0, torch.inf]))
    >>> centred_noise(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), drawn).tolist()
    [1.5, 3.0]
    """
    share = 1 / anchors.count.to(variances)
    own = 1 - 2 * share if anchors.holds_own else torch.ones_like(share)
    return own * variances + share * torch.where(of_anchor.isnan(), variances, of_anchor)


def _spread(centred: Float[Tensor, "batch wordings"]) -> Float[Tensor, "batch"]:
    """Sample variance over wordings (divisor: wordings − 1); NaN with fewer than two."""
    freedom = (~centred.isnan()).sum(dim=1).to(torch.float64) - 1
    squares = (centred - centred.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    return squares / torch.where(freedom > 0, freedom, torch.nan)


def _floored(variances: Float[Tensor, "batch"], floor: float) -> Float[Tensor, "batch"]:
    return torch.where(variances.isnan(), torch.nan, variances.clamp(min=floor))


def _moderated(
    variances: Float[Tensor, "batch"], freedom: Float[Tensor, "batch"], prior: VariancePrior | None, floor: float
) -> Float[Tensor, "batch"]:
    if prior is None:
        return variances
    return moderate(_floored(variances, floor), freedom, prior)
