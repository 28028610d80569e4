"""Reward columns, logged figures and warnings of a variance-aware trainer."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.objectives import Objective, effective_sample_size
from surefoot.maths.penalty import spread_within
from surefoot.rewards.source import RewardSource
from surefoot.training.shaping import ShapedRewards
from surefoot.types import Calibration

__all__ = [
    "IdleWeights",
    "RewardColumn",
    "ShareOfTime",
    "columns",
    "magnitude",
    "penalty_share",
    "summary",
    "warn_if_even",
    "warn_if_uninformative",
    "warn_if_unreliable",
    "with_extra_rewards",
]

_EVEN = 0.1
"""Coefficient of variation of the weights below which the trainer warns that weighting has little to work with."""
_UNRELIABLE = 0.6
"""Reliability of a variance below which weights are mostly noise (docs/method.md 6, docs/theory.md)."""
_IDLE = 0.03
"""Share of the rewards' spread below which the effect of weighting counts as none."""


class RewardColumn:
    """Pseudo reward function that hands TRL one column that the bridge computed for this batch.

    Args:
        name: TRL logs the column under `rewards/{name}`.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.values: list[float] | None = None

    def __call__(self, prompts: list[Any], **_: Any) -> list[float]:
        if self.values is None or len(self.values) != len(prompts):
            raise RuntimeError(
                f"the column '{self.__name__}' was asked for outside a scored batch: this version of TRL calls its "
                "reward functions in a way surefoot doesn't know; please report it with the TRL version"
            )
        values, self.values = self.values, None
        return values


class ShareOfTime:
    """Context manager that measures the share of the time since its first use that was spent inside it."""

    def __init__(self) -> None:
        self._spent, self._first, self._entered = 0.0, math.nan, 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()
        if math.isnan(self._first):
            self._first = self._entered

    def __exit__(self, *_: object) -> None:
        self._spent += time.perf_counter() - self._entered

    @property
    def share(self) -> float:
        """Share of the time, in [0, 1]; NaN before the first use."""
        return self._spent / (time.perf_counter() - self._first)


def columns(shaped: ShapedRewards, own_beta: float = 0.0) -> dict[str, Float[Tensor, "batch"]]:
    """Columns for TRL: reward and surcharge, which it sums, and variance and weight, which it only logs.

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
    """Figures of one batch to log; means are over the scored completions, KL in nats per sequence.

    Args:
        raw: the members' rewards, for their means; None for a source without members.
        ratio_known: False where the log-ratio was not computed; its figures are then left out.
    """
    estimate, scored = shaped.estimate, shaped.estimate.scored
    values = {
        "beta": beta,
        "unscored": float((~scored).double().mean()),
        "reward/mean_of_members": float(estimate.mean.nanmean()),
    }
    if ratio_known:
        values["sequence_kl"] = float(shaped.sampled_ratio.nanmean())
        values["reward/penalty"] = float((shaped.log_ratio * beta - shaped.surcharge).nanmean())
        values["reward/penalty_share"] = penalty_share(shaped, beta)
    if raw is not None:
        for k, score in enumerate(raw.nanmean(dim=0).tolist()):
            values[f"reward/member_{k}"] = score
    if estimate.has_variance:
        values["reward/variance"] = float(estimate.variance.nanmean())
    if objective.weights == "variance":
        values |= _weight_summary(shaped.weight[~shaped.weight.isnan()], objective)
        if ratio_known:
            values["weight/effect"] = _effect(shaped)
    return values


def penalty_share(shaped: ShapedRewards, beta: float) -> float:
    """Spread of the penalty among a prompt's completions over that of their rewards (docs/method.md 10).

    1 for the optimum of the penalised objective, where β ln(π/π₀) = r − const; about 0 while the penalty is
    negligible. NaN where no rewards differ.

    Args:
        shaped: of one batch.
        beta: with which it was shaped.
    """
    spread = _deviation(shaped.reward, shaped)
    return _deviation(shaped.log_ratio * beta - shaped.surcharge, shaped) / spread if spread > 0 else math.nan


def _effect(shaped: ShapedRewards) -> float:
    """Spread of the surcharge among a prompt's completions over that of their rewards: the effect of weighting.

    About 0 while β ln(π/π₀) is small beside the rewards' differences: then the run is an unweighted one, whatever the
    weights are. NaN where no rewards differ.
    """
    spread = _deviation(shaped.reward, shaped)
    return _deviation(shaped.surcharge, shaped) / spread if spread > 0 else math.nan


def _deviation(values: Float[Tensor, "batch"], shaped: ShapedRewards) -> float:
    """Root mean square of the deviations from the prompt's mean, over scored completions."""
    scored, groups = shaped.estimate.scored, shaped.estimate.groups
    return spread_within(values[scored], None if groups is None else groups[scored])


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


class IdleWeights:
    """Warn once if unequal weights have no effect because β ln(π/π₀) is too small.

    Args:
        start: batches without a warning; a policy begins at its reference, where weights have no effect.
        window: number of last batches whose median counts.
    """

    def __init__(self, start: int = 40, window: int = 30) -> None:
        self._left, self._recent, self._said = start, deque[float](maxlen=window), False

    def see(self, values: dict[str, float]) -> None:
        """Take the summary of the next batch."""
        effect, share = values.get("weight/effect", math.nan), values.get("weight/effective_sample_size", 1.0)
        self._left -= 1
        # Nearly equal weights are reported at calibration (`warn_if_even`).
        if self._said or math.isnan(effect) or share > 1 / (1 + _EVEN**2):
            return
        self._recent.append(effect)
        if self._left < 0 and (middle := statistics.median(self._recent)) < _IDLE:
            self._said = True
            warnings.warn(
                f"weighting adds {middle:.1%} of what rewards differ by (weight/effect, median of the last "
                f"{len(self._recent)} batches): β ln(π/π₀) is too small for the weights to act on, and this run is an "
                f"unweighted one so far. β is {values['beta']:.3g}; start it higher, or raise the learning "
                "rate (docs/trainers.md)",
                stacklevel=3,
            )


def with_extra_rewards(
    shaped: ShapedRewards, rewards: Float[Tensor, "batch functions"], factors: Float[Tensor, "functions"]
) -> ShapedRewards:
    """Add the user's own reward functions, weighted, to r̃ as TRL does; unscored values are left out."""
    if rewards.shape[1] == 0:
        return shaped
    extra = (rewards.cpu() * factors.cpu()).nansum(dim=1)
    return replace(shaped, reward=shaped.reward + extra.to(shaped.reward))


def magnitude(shaped: ShapedRewards, advantages: Float[Tensor, "batch"], beta: float) -> float:
    """Scale of the rounding errors of the advantages: 1 and the sum of the largest numbers that enter them.

    Args:
        beta: of the penalty in the reward.
    """
    reward, ratio = shaped.reward.nan_to_num(0.0), shaped.log_ratio
    return 1.0 + float(advantages.abs().max() + reward.abs().max() + beta * ratio.abs().max())


def warn_if_uninformative(source: RewardSource) -> None:
    """Warn if `surefoot diagnose` found that weighting by the source's variance is unlikely to help."""
    verdict = (source.diagnosis or {}).get("verdict", {})
    if verdict.get("weighting") in ("unlikely", "nothing"):
        reason = next((line for line in verdict.get("lines", []) if line.startswith("Weighting")), "")
        warnings.warn(
            f"diagnose.json beside '{source.name}' speaks against weighting by its variance: {reason} Compare with "
            "preset='mean' at the same KL budget",
            stacklevel=3,
        )


def warn_if_even(source: RewardSource, calibration: Calibration) -> None:
    """Warn if the variance hardly differs between the reference policy's completions."""
    if calibration.notes["weight_cv"] < _EVEN:
        warnings.warn(
            f"the variance of '{source.name}' is nearly the same for all completions of the reference policy "
            f"(its coefficient of variation is {calibration.notes['weight_cv']:.2f}): weighting has next to "
            "nothing to work with, and this run will be much like preset='mean'",
            stacklevel=3,
        )


def warn_if_unreliable(source: RewardSource, calibration: Calibration) -> None:
    """Warn if the variance is too unreliable to weigh by."""
    reliability = calibration.notes.get("reliability", math.nan)
    if reliability < _UNRELIABLE:
        warnings.warn(
            f"the variance of '{source.name}' has a reliability of {reliability:.2f}: weights made of it are mostly "
            "noise. Use a closed form (kind: linear or laplace), many members (kind: heads, members: 50), or "
            "variance: smoothed",
            stacklevel=3,
        )
