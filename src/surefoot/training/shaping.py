"""From scored completions and log-ratios to what the trainer adds to its reward; knows no trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.maths import objectives
from surefoot.maths.objectives import Objective
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors, RewardEstimate

__all__ = ["ShapedRewards", "group_relative", "leave_one_out", "shape_rewards"]


@dataclass(frozen=True, eq=False)
class ShapedRewards:
    """One generation batch, over all processes, in the order of the prompts.

    Args:
        estimate: rewards with their variance.
        reward: (batch,) r̃; NaN where unscored.
        weight: (batch,) w; 1 where the objective doesn't weigh; NaN where unscored.
        log_ratio: (batch,) ln π/π₀ of the completion that enters the reward, in nats; 0 where it is masked.
        surcharge: (batch,) what is added to the reward beside TRL's own −β ln π/π₀, so that the sum is
            r̃ − β·penalty; exactly 0 where w = 1 and the penalty is the generalised one.
        sampled_ratio: (batch,) `log_ratio` of completions that are masked (TRL's `mask_truncated_completions`) too:
            its mean is the KL.
    """

    estimate: RewardEstimate
    reward: Float[Tensor, "batch"]
    weight: Float[Tensor, "batch"]
    log_ratio: Float[Tensor, "batch"]
    surcharge: Float[Tensor, "batch"]
    sampled_ratio: Float[Tensor, "batch"]

    def total(self, beta: float) -> Float[Tensor, "batch"]:
        """(batch,) r̃ − β·penalty, the reward whose leave-one-out advantages the trainer must use."""
        return self.reward + self.surcharge - beta * self.log_ratio


def shape_rewards(
    source: RewardSource,
    objective: Objective,
    scores: Float[Tensor, "batch columns"],
    anchors: Anchors | None,
    groups: Int[Tensor, "batch"],
    log_ratio: Float[Tensor, "batch"],
    beta: float,
) -> ShapedRewards:
    """Apply the objective of docs/method.md 7 and 8.2 to one batch.

    Args:
        source: gave `scores`; must be calibrated on the reference policy if the objective weighs by variance.
        scores: (batch, columns) of `source.score`, all processes' rows.
        anchors: of each row's prompt; None centres by the calibration set.
        groups: (batch,) prompt ids.
        log_ratio: (batch,) sequence ln π/π₀ in nats, detached.
        beta: KL coefficient, in reward per nat.

    Raises:
        VarianceError: weighting is on, but the source has no variance or was not calibrated.
    """
    estimate = replace(source.estimate(scores, anchors), groups=groups)
    reward = objectives.aggregate(estimate, objective)
    weight = _weights(source, objective, estimate)
    ratio = log_ratio.to(weight)
    surcharge = -beta * (objectives.sequence_penalty(ratio, weight, objective.form) - ratio)
    return ShapedRewards(estimate, reward, weight, ratio, surcharge, ratio)


def _weights(source: RewardSource, objective: Objective, estimate: RewardEstimate) -> Float[Tensor, "batch"]:
    if objective.weights == "none":
        return torch.where(estimate.scored, 1.0, torch.nan).to(estimate.mean)
    calibration = source.calibration
    if calibration is None or calibration.reference_variance is None:
        raise VarianceError(
            f"weighting by the variance of '{source.name}' needs its mean over the reference policy's completions; "
            "calibrate the source first (it must have at least two members)"
        )
    return objectives.weights(
        estimate.variance, calibration.reference_variance, objective.weight_floor, objective.weight_ceiling
    )


def leave_one_out(rewards: Float[Tensor, "batch"], group_size: int) -> Float[Tensor, "batch"]:
    """RLOO's advantages: each reward minus the mean of its scored siblings; 0 where unscored or without siblings.

    Source: Ahmadian et al., arXiv:2402.14740, eq. 6. Used to check that the trainer's advantages are the objective's.

    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3).tolist()
    [-3.0, -1.5, 4.5]
    """
    grouped = rewards.view(-1, group_size)
    others = (~grouped.isnan()).sum(dim=1, keepdim=True) - 1
    baseline = (grouped.nansum(dim=1, keepdim=True) - grouped) / others
    return (grouped - baseline).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).reshape(-1)


def group_relative(rewards: Float[Tensor, "batch"], group_size: int, scale: str = "none") -> Float[Tensor, "batch"]:
    """GRPO's advantages: each reward minus the mean of its group's scored rows; 0 where unscored.

    Source: Shao et al., arXiv:2402.03300, with the scaling left out (arXiv:2503.20783) or taken over the group or the
    batch (sample standard deviation + 1e-4, as TRL does).

    Args:
        scale: "none", "group" or "batch".

    >>> group_relative(torch.tensor([1.0, 2.0, 6.0]), 3).tolist()
    [-2.0, -1.0, 3.0]
    """
    grouped = rewards.view(-1, group_size)
    centred = grouped - grouped.nanmean(dim=1, keepdim=True)
    if scale != "none":
        of = grouped if scale == "group" else rewards.view(1, -1)
        count = (~of.isnan()).sum(dim=1, keepdim=True)
        square = (of - of.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
        centred = centred / ((square / (count - 1)).sqrt() + 1e-4)
    return centred.nan_to_num(nan=0.0).reshape(-1)
