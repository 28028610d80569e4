r"""The reward of weighted criteria with its reply variance, from the answers to each; pure arithmetic.

With weights w, P the sum of the positive ones, and answers x in [0, 1], a reply's reward is

    y = Σᵢ wᵢxᵢ / P,   and   y = L = Σᵢ min(wᵢ, 0) / P, the least possible one, where a required criterion isn't met.

The reward is the mean of y over replies, and its variance says how y differs between replies of the same judge.

*Together*, a reply answers all criteria, so y is known for each reply: its sample variance keeps the covariances.

*Each* criterion has its own replies, independent of the others'. Of the required ones (answers 0 or 1, means p̂ⱼ) let
g be the product, of the others T = Σ wx/P + Σ_required w/P − L. Then y = L + gT with g and T independent, and

    E[y] = L + E[g]E[T],   Var y = E[g]E[T²] − E[g]²E[T]²,

in which each factor has an unbiased estimate: p̂ⱼ for E[xⱼ], p̂ⱼ² − sⱼ²/n for E[xⱼ]², T̂² − Σ(w/P)²s²/n for E[T]², and
that plus Σ(w/P)²s² for E[T²]. Products of independent unbiased estimates are unbiased. The whole is the mean of
½(y − y′)² over all ways to pair two different replies of each criterion, so it is never negative. Without required
criteria it is Σ(w/P)²s².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["WeightedSum", "Weights", "paired_spread", "sum_of_each", "sum_together"]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a prompt's criteria.

    Args:
        weights: (criteria,) wᵢ, one of them positive.
        required: (criteria,) whether it must be met.
        exact: (criteria,) whether its answer is a verifier's, which is no reply and has no variance.
        steps: (criteria,) least difference of two answers: 1 where they are met or not met.
    """

    weights: Float[Tensor, "criteria"]
    required: Bool[Tensor, "criteria"]
    exact: Bool[Tensor, "criteria"]
    steps: Float[Tensor, "criteria"]

    @property
    def shares(self) -> Float[Tensor, "criteria"]:
        """(criteria,) w/P."""
        return self.weights / self.weights.clamp(min=0).sum()

    @property
    def least(self) -> Float[Tensor, ""]:
        """L, the least possible reward."""
        return self.shares.clamp(max=0).sum()

    @property
    def rounding(self) -> Float[Tensor, "criteria"]:
        """(criteria,) variance that rounding to the steps adds to the reward: least that equal answers can show."""
        return torch.where(self.exact, 0.0, (self.shares * self.steps).square() / 12)


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """Of one completion, in the unit of the reward; NaN is unknown.

    Args:
        reward: mean over replies.
        reply: variance of one reply's reward.
        mean: variance of the reward itself.
        freedom: degrees of freedom of both; infinite where no criterion is judged. In `sum_of_each` by Welch and
            Satterthwaite's formula, for criteria whose replies vary alike.
        floor: least variance of one reply that equal replies can show, from rounding.
        floor_of_mean: the same of the reward.
    """

    reward: float
    reply: float
    mean: float
    freedom: float
    floor: float
    floor_of_mean: float


def sum_of_each(answers: Float[Tensor, "replies criteria"], weights: Weights) -> WeightedSum:
    """The weighted sum where each criterion has replies of its own.

    Args:
        answers: in [0, 1], NaN where a reply is missing; a verifier's answer in every row. Each column has one.
    """
    w, required, counts = weights.shares, weights.required, (~answers.isnan()).sum(dim=0)
    means, squares = answers.nanmean(dim=0), _variances(answers)
    squares = torch.where(weights.exact, 0.0, squares)
    total = w[required].sum() + (w * means)[~required].sum() - weights.least
    one = (w.square() * squares)[~required].sum()
    total_squared = total.square() - (w.square() * squares / counts)[~required].sum()
    gate = means[required].prod()
    gate_squared = (means.square() - squares / counts)[required].prod()
    free = counts.double() - 1
    a = weights.rounding
    certain = not bool((a > 0).any())
    judged = a > 0
    freedom = torch.inf if certain else float(a.sum().square() / (a.square() / free)[judged].sum())
    return WeightedSum(
        reward=float(weights.least + gate * total),
        reply=_not_negative(gate * (total_squared + one) - gate_squared * total_squared),
        mean=_not_negative(gate.square() * total.square() - gate_squared * total_squared),
        freedom=freedom,
        floor=float(a.sum()),
        floor_of_mean=float((a / counts).sum()),
    )


def sum_together(answers: Float[Tensor, "replies criteria"], weights: Weights) -> WeightedSum:
    """The weighted sum where each reply answers all criteria.

    Args:
        answers: in [0, 1], without NaN; a verifier's answer in every row.
    """
    met = (answers[:, weights.required] > 0).all(dim=1)
    rewards = torch.where(met, answers @ weights.shares, weights.least)
    count, floor = len(answers), float(weights.rounding.sum())
    variance = float(_variances(rewards[:, None])[0]) if floor else 0.0
    freedom = count - 1.0 if floor else torch.inf
    return WeightedSum(float(rewards.mean()), variance, variance / count, freedom, floor, floor / count)


def paired_spread(centred: Float[Tensor, "batch criteria"]) -> Float[Tensor, "batch"]:
    """(batch,) variance of a sum of centred contributions over which criteria were drawn, in reward².

    For m criteria drawn independently from a population of (weight, answer), with P as given, the sum of cᵢ = wᵢxᵢ/P
    less the anchor's is m times their mean, and m Σ(cᵢ − c̄)²/(m − 1) is an unbiased estimate of its variance. It
    holds the noise of the replies that the answers were read from. P is taken as given although it is drawn too: exact
    where all weights are equal.

    Args:
        centred: cᵢ of the completion less that of its anchor, or of the other side of a pair; NaN where unknown.

    Returns:
        NaN with fewer than two known criteria.
    """
    counts = (~centred.isnan()).sum(dim=1).to(centred)
    squares = (centred - centred.nanmean(dim=1, keepdim=True)).square().nansum(dim=1)
    return torch.where(counts > 1, counts * squares / (counts - 1), torch.nan)


def _variances(answers: Float[Tensor, "replies columns"]) -> Float[Tensor, "columns"]:
    """Sample variance of each column (divisor n − 1), NaN where fewer than two are known."""
    free = (~answers.isnan()).sum(dim=0) - 1
    squares = (answers - answers.nanmean(dim=0)).square().nansum(dim=0)
    return torch.where(free > 0, squares / free, torch.nan)


def _not_negative(variance: Float[Tensor, ""]) -> float:
    """A mean of squares, which rounding may have left below 0."""
    return float(variance.clamp(min=0)) if not bool(variance.isnan()) else torch.nan
