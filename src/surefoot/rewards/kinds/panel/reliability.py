r"""How reliable each judge of a panel is, and the weights that follow; pure arithmetic on a covariance matrix.

Judges of different families share nothing but the reward, t. With judges scaled to equal spread, a family's voice
is λ_g t + (its own part), var t = 1, so that cov(u_g, u_h) = λ_g λ_h for g ≠ h: one factor. Three families or more
fix the loadings λ (Spearman 1904: λ₁² = c₁₂c₁₃/c₂₃); two don't, since only the product shows. Then

- reliability of judge j: λ_j²/var_j, the share of its variance, noise included, that other families share;
- weights ∝ λ_g/ψ_g with ψ_g = var u_g − λ_g², noise included: of all weights, those whose mean follows t best
  (Bartlett 1937).

It is agreement with the other families, not with a truth. What all families share counts as reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LEAST_SHARE", "Reliability", "loadings", "weigh"]

LEAST_SHARE = 0.25
"""A family's weight is at least this share of an equal weight, so that no voice is lost to a noisy estimate."""
_LEAST_OWN = 0.05
"""A voice's own part is at least this share of its variance; a sample's λ² may exceed the variance."""
_SWEEPS = 200


@dataclass(frozen=True, eq=False)
class Reliability:
    """What the judges' covariances say of them.

    Args:
        weights: (..., families) sum to 1; equal for two families, whose loadings aren't fixed, and where nothing is
            shared.
        judges: (..., judges) reliability in [0, 1]; NaN for two families.
    """

    weights: Float[Tensor, "*sets families"]
    judges: Float[Tensor, "*sets judges"]


def loadings(covariance: Float[Tensor, "*sets voices voices"]) -> Float[Tensor, "*sets voices"]:
    """Fit λ ≥ 0 of one common factor: least Σ_{g≠h} (c_gh − λ_g λ_h)², by coordinate descent.

    Args:
        covariance: of at least three voices; the diagonal is an upper bound of λ² and says nothing else.

    >>> l = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    >>> [round(x, 6) for x in loadings(torch.outer(l, l) + torch.diag(1 - l.square())).tolist()]
    [0.9, 0.6, 0.3]
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    most = diagonal.clamp(min=0).sqrt()
    # Started from all alike, one contrary voice would take all the others down to 0.
    first = torch.linalg.eigh(covariance - torch.diag_embed(diagonal)).eigenvectors[..., -1]
    found = torch.minimum((first * first.sum(dim=-1, keepdim=True).sign()).clamp(min=0), most)
    for _ in range(_SWEEPS):
        before = found.clone()
        for g in range(found.shape[-1]):
            others = found.clone()
            others[..., g] = 0.0
            size = others.square().sum(dim=-1)
            best = (covariance[..., g, :] * others).sum(dim=-1) / torch.where(size > 0, size, 1.0)
            found[..., g] = torch.minimum(best.clamp(min=0), most[..., g])
        if bool(((found - before).abs() <= 1e-12 * most.max()).all()):
            break
    return found


def weigh(covariance: Float[Tensor, "*sets judges judges"], members: Float[Tensor, "families judges"]) -> Reliability:
    """Reliabilities of the judges and weights of the families.

    Args:
        covariance: of the centred, scaled judges over completions.
        members: 1 where a judge is of the family (`estimate.membership`).
    """
    count = len(members)
    shares = members / members.sum(dim=1, keepdim=True)
    equal = covariance.new_full((*covariance.shape[:-2], count), 1 / count)
    if count < 3:
        return Reliability(equal, torch.full_like(covariance[..., 0], torch.nan))
    with_voices = covariance @ shares.T
    voices = shares @ with_voices
    found = loadings(voices)
    variances = voices.diagonal(dim1=-2, dim2=-1)
    raw = found / torch.maximum(variances - found.square(), _LEAST_OWN * variances)
    total = raw.sum(dim=-1, keepdim=True)
    weights = torch.where(total > 0, raw / total, equal)
    # A judge's loading comes from the other families alone: its own holds what only that family shares.
    others = (1 - members.T) * found[..., None, :]
    of_judges = ((with_voices * others).sum(dim=-1) / others.square().sum(dim=-1)).nan_to_num(0.0).clamp(min=0)
    judges = (of_judges.square() / covariance.diagonal(dim1=-2, dim2=-1)).clamp(max=1)
    return Reliability(_bounded(weights), judges)


def _bounded(weights: Float[Tensor, "*sets families"]) -> Float[Tensor, "*sets families"]:
    """Raise small weights to the least; the others give in proportion to what they have above it."""
    least = LEAST_SHARE / weights.shape[-1]
    above = (weights - least).clamp(min=0)
    return least + above / above.sum(dim=-1, keepdim=True) * (1 - LEAST_SHARE)
