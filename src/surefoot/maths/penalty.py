"""From an estimate to what a policy-gradient engine optimises: a reward and a KL coefficient for each completion.

Any engine that rewards whole completions can use it: TRL's trainers here, verl's and OpenRLHF's by multiplying their
own KL with the coefficient (docs/method.md 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.maths.objectives import Objective, aggregate, weights
from surefoot.types import RewardEstimate

__all__ = ["ShapedReward", "shape_reward"]


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
