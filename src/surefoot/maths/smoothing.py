"""Smooth an ensemble's variance over features by ridge regression of its logarithm (docs/method.md 3.3).

The noise of a variance over few members differs from completion to completion, where the variance itself changes
slowly with the features. With anchored features δ = φ − b and S the second moment of the training pairs'
differences, scaled to a mean eigenvalue of 1, the regressors are the logs of three squared lengths

    ln q_ε(δ) = ln δᵀ(S + ε1)⁻¹δ,   ε = 0.1, 1, 10

Directions in which the pairs differ little have a large weight in them. The variance of a linear head has the same
form: its posterior is δᵀH⁻¹δ, H about S plus a penalty. Everything is in float64; variances are in reward².
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, VarianceError
from surefoot.maths.ensemble import sample_variance

__all__ = ["RIDGES", "LogVariance", "PairScatter", "fit_log_variance", "smoothed_reliability"]

RIDGES = (0.1, 1.0, 10.0)
"""ε of the three squared lengths."""
_STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-4, 11))
"""Ridge penalties of the regression to choose from, on standardised regressors."""
_RANK = 1024
"""Largest number of directions of S that are kept; S counts as 0 outside of them."""


@dataclass(frozen=True, eq=False)
class PairScatter:
    """Second moment S of the training pairs' feature differences, scaled to a mean eigenvalue of 1.

    Args:
        basis: (features, rank) orthonormal eigenvectors.
        values: (rank,) eigenvalues; 0 outside of the basis.
    """

    basis: Float[Tensor, "features rank"]
    values: Float[Tensor, "rank"]

    @classmethod
    def of(cls, differences: Float[Tensor, "pairs features"]) -> PairScatter:
        """Scatter of standardised differences, chosen minus rejected features.

        Raises:
            DataError: both sides of every pair are equal.
        """
        d = differences.to(torch.float64)
        values, vectors = torch.linalg.eigh(d.T @ d)
        mean = float(values.clamp(min=0.0).mean())
        if not mean > 0:
            raise DataError("both sides of every pair have equal features: no variance can be learnt from them")
        return cls(vectors[:, -_RANK:].contiguous(), values[-_RANK:].clamp(min=0.0) / mean)

    def lengths(self, anchored: Float[Tensor, "rows features"]) -> Float[Tensor, "rows ridges"]:
        """ln q_ε(δ) of each row at every ε; −∞ where δ is 0.

        >>> PairScatter(torch.eye(2).double(), torch.ones(2).double()).lengths(torch.tensor([[3.0, 0.0]])).exp()[0, 1]
        tensor(4.5000, dtype=torch.float64)
        """
        x = anchored.to(torch.float64)
        inside = (x @ self.basis.to(x)).square()
        outside = (x.square().sum(dim=1) - inside.sum(dim=1)).clamp(min=0.0)
        if self.basis.shape[0] == self.basis.shape[1]:
            outside = torch.zeros_like(outside)  # a complete basis leaves rounding alone outside
        terms = [(inside / (self.values.to(x) + ridge)).sum(dim=1) + outside / ridge for ridge in RIDGES]
        return torch.stack(terms, dim=1).log()


@dataclass(frozen=True, slots=True)
class LogVariance:
    """Fitted log variance, ln σ²(δ) = level + Σ slope ln q_ε(δ).

    Args:
        level: in ln reward².
        slopes: one for each ε.
    """

    level: float
    slopes: tuple[float, ...]

    def log_of(self, lengths: Float[Tensor, "rows ridges"]) -> Float[Tensor, "rows"]:
        """ln σ² of each row."""
        return self.level + lengths @ lengths.new_tensor(self.slopes)

    def of(self, lengths: Float[Tensor, "rows ridges"]) -> Float[Tensor, "rows"]:
        """σ² of each row, in reward²; 0 where δ is 0, as the members' own is there."""
        return torch.where(lengths.isneginf().any(dim=1), 0.0, self.log_of(lengths).exp())

    def to_notes(self) -> dict[str, float]:
        """The coefficients as `Calibration.notes`."""
        return {"smooth_level": self.level} | {f"smooth_slope_{k}": slope for k, slope in enumerate(self.slopes)}

    @classmethod
    def from_notes(cls, notes: dict[str, float]) -> LogVariance | None:
        """Read the coefficients that `to_notes` wrote; None if there are none."""
        if "smooth_level" not in notes:
            return None
        return cls(notes["smooth_level"], tuple(notes[f"smooth_slope_{k}"] for k in range(len(RIDGES))))


def fit_log_variance(
    lengths: Float[Tensor, "rows ridges"],
    variances: Float[Tensor, "rows"],
    freedom: Float[Tensor, "rows"] | float,
) -> LogVariance:
    """Fit ln s² to ln q by ridge regression, with the penalty of least leave-one-out error.

    The mean of ln s² lies ψ(d/2) − ln(d/2) below ln σ² (Smyth 2004); the level is corrected for it.

    Args:
        lengths: of `PairScatter.lengths`.
        variances: (rows,) s² of the members' anchored rewards; rows that are 0 or NaN are left out.
        freedom: d of each row, or of all.

    Raises:
        VarianceError: fewer than three rows have a variance.
    """
    s2 = variances.to(torch.float64)
    d = torch.as_tensor(freedom, dtype=torch.float64).expand_as(s2)
    usable = (s2 > 0) & (d > 0) & lengths.isfinite().all(dim=1)
    if int(usable.sum()) < 3:
        raise VarianceError(
            f"a smoothed variance is fitted to at least 3 completions with a variance, got {int(usable.sum())}"
        )
    x, half = lengths[usable].to(torch.float64), d[usable] / 2
    y = s2[usable].log() - torch.digamma(half) + half.log()
    centre, spread = x.mean(dim=0), x.std(dim=0, correction=1).clamp(min=1e-12)
    slopes = _ridge((x - centre) / spread, y - y.mean()) / spread
    return LogVariance(float(y.mean() - slopes @ centre), tuple(slopes.tolist()))


def _ridge(x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows"]) -> Float[Tensor, "columns"]:
    """Ridge coefficients of centred y on standardised x, with the penalty of least leave-one-out error."""
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    along = left.T @ y
    best, chosen = math.inf, torch.zeros(x.shape[1], dtype=x.dtype)
    for strength in _STRENGTHS:
        kept = values.square() / (values.square() + strength)
        leverage = left.square() @ kept + 1 / len(y)
        error = float(((y - left @ (kept * along)) / (1 - leverage).clamp(min=1e-9)).square().mean())
        if error < best:
            best, chosen = error, right.T @ (values / (values.square() + strength) * along)
    return chosen


def smoothed_reliability(
    centred: Float[Tensor, "rows members"], lengths: Float[Tensor, "rows ridges"], splits: int = 32
) -> float:
    """Reliability of the members' smoothed variance: its agreement with that of as many other members; NaN if unknown.

    Both halves of the members are smoothed by themselves, over random splits. The covariance of their log variances
    over its own spread, averaged over the splits, is stepped up to all members: 2r/(1 + r). A correlation for each
    split would not do, since two nearly constant fits to noise correlate by chance. It says nothing of the part of the
    variance that smoothing leaves out.

    Args:
        centred: anchored scores of completions of the reference policy.
        lengths: of the same rows.

    Returns:
        NaN for fewer than four members, or fewer than three rows that all of them scored.
    """
    known = ~centred.isnan().any(dim=1) & lengths.isfinite().all(dim=1)
    x, q, count = centred[known].to(torch.float64), lengths[known], centred.shape[1]
    if count < 4 or len(x) < 3:
        return math.nan
    stream = torch.Generator().manual_seed(0)
    shared, spread = 0.0, 0.0
    for _ in range(splits):
        order = torch.randperm(count, generator=stream)
        parts = (order[: count // 2], order[count // 2 :])
        logs = [_smooth(x[:, part], q) for part in parts]
        covariance = torch.cov(torch.stack(logs), correction=1)
        shared += float(covariance[0, 1])
        spread += float(covariance.diagonal().mean())
    r = shared / spread if spread > 0 else math.nan
    return 2 * r / (1 + r) if r > -1 else math.nan


def _smooth(members: Float[Tensor, "rows members"], lengths: Float[Tensor, "rows ridges"]) -> Float[Tensor, "rows"]:
    """ln σ² of these members alone."""
    fitted = fit_log_variance(lengths, sample_variance(members), float(members.shape[1] - 1))
    return fitted.log_of(lengths)
