"""From an estimate to what a policy-gradient engine optimises: a reward and a KL coefficient for each completion.

Any engine that rewards whole completions can use it: TRL's trainers here, verl's and OpenRLHF's by multiplying their
own KL with the coefficient (docs/method.md 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.maths.objectives import Objective, aggregate, weights
from surefoot.types import RewardEstimate

__all__ = ["ShapedReward", "penalty_share", "shape_reward", "spread_within"]


@dataclass(frozen=True, eq=False)
class ShapedReward:
    """What each completion of a batch is paid, and what each nat of its log-ratio costs.

    Args:
        aggregate: (batch,) r̃, in reward; NaN where unscored.
        constant: (batch,) added to it whatever the log-ratio: −β·w in the literal form, else 0.
        weight: (batch,) w; 1 where the objective doesn't weigh; NaN where unscored.
        coefficient: (batch,) β·w, in reward per nat: what an engine multiplies its sequence log-ratio ln π/π₀ with.
    """

    aggregate: Float[Tensor, "batch"]
    constant: Float[Tensor, "batch"]
    weight: Float[Tensor, "batch"]
    coefficient: Float[Tensor, "batch"]

    def total(self, log_ratio: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """(batch,) r̃ + constant − coefficient · ln π/π₀, with the log-ratio in nats and detached."""
        return self.aggregate + self.constant - self.coefficient * log_ratio

    def surcharge(self, log_ratio: Float[Tensor, "batch"], beta: float) -> Float[Tensor, "batch"]:
        """(batch,) `total` less r̃ − beta · ln π/π₀: what is missing where an engine has an unweighted KL of its own.

        Exactly 0 where w = 1 in the generalised form.
        """
        return self.constant - (self.coefficient - beta) * log_ratio


def shape_reward(
    estimate: RewardEstimate, objective: Objective, reference_variance: float | None, beta: float
) -> ShapedReward:
    """Apply an objective to a batch of estimates.

    Args:
        reference_variance: mean variance of the reference policy's completions, in reward²; only read where the
            objective weighs by variance.
        beta: KL coefficient, in reward per nat.

    Raises:
        VarianceError: the objective weighs by variance, and the reference variance is unknown.
    """
    reward = aggregate(estimate, objective)
    if objective.weights == "none":
        weight = torch.where(estimate.scored, 1.0, torch.nan).to(estimate.mean)
    elif reference_variance is None:
        raise VarianceError("weighting needs the mean variance over the reference policy's completions")
    else:
        weight = weights(estimate.variance, reference_variance, objective.weight_floor, objective.weight_ceiling)
    coefficient = beta * weight
    constant = -coefficient if objective.form == "literal" else torch.zeros_like(weight)
    return ShapedReward(reward, constant, weight, coefficient)


def spread_within(values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"] | None) -> float:
    """Root mean square of the deviations from each prompt's mean (divisor: the number of rows), in float64.

    Args:
        values: (batch,) known values.
        groups: (batch,) prompt ids; None takes the deviations from the mean over all rows.

    >>> spread_within(torch.tensor([0.0, 2.0, 5.0, 7.0]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    known = values.double()
    if groups is None:
        return float((known - known.mean()).square().mean().sqrt())
    _, place = torch.unique(groups, return_inverse=True)
    count = torch.bincount(place).double()
    mean = torch.zeros_like(count).index_add_(0, place, known) / count
    return float((known - mean[place]).square().mean().sqrt())


def penalty_share(
    reward: Float[Tensor, "batch"], penalty: Float[Tensor, "batch"], groups: Int[Tensor, "batch"] | None
) -> float:
    """Spread of the penalty among a prompt's completions over that of their rewards (docs/method.md 10).

    1 for the optimum of the penalised objective, where βw ln(π/π₀) = r̃ − const; about 0 while the penalty is
    negligible. NaN where no rewards differ.

    Args:
        reward: (batch,) r̃.
        penalty: (batch,) what is taken from it, as βw ln(π/π₀), in reward.
        groups: (batch,) prompt ids, or None (`spread_within`).

    >>> penalty_share(torch.tensor([0.0, 4.0]), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))
    0.25
    """
    spread = spread_within(reward, groups)
    return spread_within(penalty, groups) / spread if spread > 0 else math.nan
