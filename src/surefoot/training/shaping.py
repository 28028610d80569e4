"""One generation batch of TRL's trainers: its scored completions, and what is added to TRL's own reward."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.maths.objectives import Objective
from surefoot.maths.penalty import shape_reward
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors, RewardEstimate

__all__ = ["ShapedRewards", "shape_rewards"]


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
    """Apply an objective to one batch of scored completions (docs/method.md 7 and 8.2).

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
    reference = None if source.calibration is None else source.calibration.reference_variance
    if objective.weights == "variance" and reference is None:
        raise VarianceError(
            f"weighting by the variance of '{source.name}' needs its mean over the reference policy's completions; "
            "calibrate the source first (it must have at least two members)"
        )
    estimate = replace(source.estimate(scores, anchors), groups=groups)
    shaped = shape_reward(estimate, objective, reference, beta)
    ratio = log_ratio.to(shaped.weight)
    surcharge = shaped.surcharge(ratio, beta)
    return ShapedRewards(estimate, shaped.aggregate, shaped.weight, ratio, surcharge, ratio)
