"""What a variance-aware trainer logs of each batch, under TRL's names where TRL has one."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.objectives import Objective, effective_sample_size
from surefoot.training.shaping import ShapedRewards

__all__ = ["columns", "summary", "with_extra_rewards"]


def columns(shaped: ShapedRewards, own_beta: float = 0.0) -> dict[str, Float[Tensor, "batch"]]:
    """The columns handed to TRL: two that are summed into the reward, two that are only shown.

    Args:
        own_beta: β where TRL itself takes no −β ln π/π₀ from the reward, so that the surcharge must; else 0.
    """
    estimate = shaped.estimate
    variance = estimate.variance if estimate.has_variance else torch.full_like(shaped.reward, torch.nan)
    surcharge = shaped.surcharge if own_beta == 0.0 else shaped.surcharge - own_beta * shaped.log_ratio
    return {"reward": shaped.reward, "surcharge": surcharge, "variance": variance, "weight": shaped.weight}


def summary(
    shaped: ShapedRewards,
    objective: Objective,
    beta: float,
    raw: Float[Tensor, "batch members"] | None,
    *,
    ratio_known: bool = True,
) -> dict[str, float]:
    """Scalars of one batch; means are over the scored completions, KL in nats per sequence.

    Args:
        raw: the members' scores as they gave them, for their means; None for a source without members.
        ratio_known: False where the log-ratio was not computed, so that nothing is said of it.
    """
    estimate, scored = shaped.estimate, shaped.estimate.scored
    values = {
        "beta": beta,
        "unscored": float((~scored).double().mean()),
        "reward/mean_of_members": float(estimate.mean.nanmean()),
    }
    if ratio_known:
        values["sequence_kl"] = float(shaped.log_ratio.nanmean())
        values["reward/penalty"] = float((shaped.log_ratio * beta - shaped.surcharge).nanmean())
    if raw is not None:
        for k, score in enumerate(raw.nanmean(dim=0).tolist()):
            values[f"reward/member_{k}"] = score
    if estimate.has_variance:
        values["reward/variance"] = float(estimate.variance.nanmean())
    if objective.weights == "variance":
        values |= _weight_summary(shaped.weight[~shaped.weight.isnan()], objective)
    return values


def _weight_summary(weight: Float[Tensor, "scored"], objective: Objective) -> dict[str, float]:
    if len(weight) == 0:
        return {}
    low, middle, high = torch.quantile(weight, weight.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {
        "weight/mean": float(weight.mean()),
        "weight/q25": low,
        "weight/median": middle,
        "weight/q75": high,
        "weight/at_floor": float((weight <= objective.weight_floor).double().mean()),
        "weight/at_ceiling": float((weight >= objective.weight_ceiling).double().mean()),
        "weight/effective_sample_size": effective_sample_size(weight),
    }


def with_extra_rewards(
    shaped: ShapedRewards, rewards: Float[Tensor, "batch functions"], factors: Float[Tensor, "functions"]
) -> ShapedRewards:
    """Add the user's own reward functions (weighted, unscored ones left out) to r̃, as TRL will."""
    if rewards.shape[1] == 0:
        return shaped
    extra = (rewards.cpu() * factors.cpu()).nansum(dim=1)
    return replace(shaped, reward=shaped.reward + extra.to(shaped.reward))
