"""What exact policies are worth: gain over the reference, risk and prompt risk, with intervals.

Two judges. *Gold*: the true reward of the candidates judges the policy that the source itself gives. *Draws*: the
reward that another sample of preferences would have given makes the policy, and further draws take turns as the truth.
The second tells errors of estimation only: a bias that all draws share is invisible to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from surefoot.forecast.draws import Draws, other_run, own_member
from surefoot.forecast.policies import Policies, policies_at_budgets
from surefoot.forecast.scored import Candidates
from surefoot.maths.objectives import Objective, aggregate, weights
from surefoot.metrics.intervals import Interval, wilson_bounds
from surefoot.theory.exact import Form
from surefoot.types import RewardEstimate

__all__ = ["Judged", "Outcomes", "Resampling", "gains_of", "judge_by_draws", "judge_by_gold", "objective_policies"]

Floats = NDArray[np.float64]
_RESAMPLES = 1000
_Z = 1.959963984540054
"""Normal quantile of 97.5%."""
_UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What the policies of one objective are worth; NaN where a budget can't be reached.

    Args:
        gains: (runs, budgets, prompts) true reward over the reference's.
        below: (runs, budgets) share of truths under which the mean gain over prompts is negative; NaN for one truth.
        worse: (runs, budgets) share of prompts and truths with a negative gain.
    """

    gains: Floats
    below: Floats
    worse: Floats


@dataclass(frozen=True, slots=True)
class Judged:
    """One objective at one budget.

    Args:
        gain: mean over runs and prompts of the true reward over the reference's.
        risk: share of runs whose mean gain is negative; of a single run, the chance of it when prompts are drawn
            anew, which has no interval.
        prompt_risk: share of prompts whose gain is negative.
        spread: standard deviation of the mean gain over runs; NaN where there is one.
    """

    gain: Interval
    risk: Interval
    prompt_risk: Interval
    spread: float


def objective_policies(
    candidates: Candidates, objective: Objective, budgets: Sequence[float], estimate: RewardEstimate | None = None
) -> Policies:
    """The exact policies of an objective at each budget.

    Args:
        estimate: in place of the candidates' own, such as one that a draw has moved.

    Raises:
        VarianceError: the objective needs a variance or members that there are not.
    """
    e = candidates.estimate if estimate is None else estimate
    if objective.within_groups:
        prompts, count = candidates.log_reference.shape
        e = replace(e, groups=torch.arange(prompts).repeat_interleave(count))
    reward = candidates.table(aggregate(e, objective))
    weight = None
    if objective.weights == "variance":
        mean = math.nan if candidates.reference_variance is None else candidates.reference_variance
        w = weights(e.variance, mean, objective.weight_floor, objective.weight_ceiling)
        weight = torch.where(candidates.log_reference > -torch.inf, candidates.table(w), 1.0)
    form: Form = "literal" if objective.form == "literal" else "generalized"
    return policies_at_budgets(reward, weight, candidates.log_reference, budgets, form)


def gains_of(
    policy: Float[Tensor, "budgets prompts candidates"],
    truth: Float[Tensor, "prompts candidates truths"],
    log_reference: Float[Tensor, "prompts candidates"],
) -> Float[Tensor, "budgets prompts truths"]:
    """E_π[truth] − E_π₀[truth] of every prompt."""
    return torch.einsum("bpc,pct->bpt", policy - log_reference.exp(), truth)


def judge_by_gold(candidates: Candidates, policies: Policies, gold: Float[Tensor, "prompts candidates"]) -> Outcomes:
    """What the source's own policies are truly worth: one run, judged by the true reward."""
    gains = gains_of(policies.policy, gold[..., None], candidates.log_reference)[..., 0]
    worse = torch.where(gains.isnan(), torch.nan, (gains < 0).double()).mean(dim=1)
    return Outcomes(gains[None].numpy(), np.full((1, len(gains)), math.nan), worse[None].numpy())


def judge_by_draws(
    candidates: Candidates, objective: Objective, budgets: Sequence[float], draws: Draws, runs: int
) -> Outcomes:
    """What an objective's policies would be worth over pipelines that differ in their preferences.

    Run i makes its policy from draw i and the source's variance. The other draws take turns as the truth; their mean
    is the source's own reward, under which the gain is counted, and the draws add the risk.
    """
    centre, errors = candidates.table(candidates.estimate.mean), candidates.table(draws.errors)
    gains, below, worse = [], [], []
    for i in range(min(runs, draws.count)):
        policy = objective_policies(candidates, objective, budgets, other_run(candidates.estimate, draws, i)).policy
        others = [j for j in range(draws.count) if j not in (i, own_member(draws, i))]
        mean = gains_of(policy, centre[..., None], candidates.log_reference)
        each = mean + gains_of(policy, errors[..., others], candidates.log_reference)
        gains.append(mean[..., 0])
        below.append(_share_below(each.mean(dim=1)))
        worse.append(_share_below(each.flatten(1)))
    return Outcomes(*(torch.stack(column).numpy() for column in (gains, below, worse)))


def _share_below(gains: Float[Tensor, "budgets values"]) -> Float[Tensor, "budgets"]:
    return torch.where(gains.isnan(), torch.nan, (gains < 0).double()).mean(dim=1)


class Resampling:
    """Bootstrap over runs and prompts together, with the same draws for whatever is compared.

    Args:
        runs, prompts: how many there are of each. One run is kept as it is, so that prompts alone are resampled.
    """

    def __init__(self, runs: int, prompts: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._runs = rng.multinomial(runs, np.full(runs, 1 / runs), _RESAMPLES) / runs
        self._prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), _RESAMPLES) / prompts

    def mean(self, gains: Floats) -> Interval:
        """The mean of (runs, prompts) gains; unknown if one of them is."""
        if np.isnan(gains).any():
            return _UNKNOWN
        low, high = np.quantile(self._means(gains), [0.025, 0.975])
        return Interval(float(gains.mean()), float(low), float(high), gains.size)

    def judged(self, outcomes: Outcomes, budget: int) -> Judged:
        """The figures of one budget, by its place."""
        gains, below, worse = outcomes.gains[:, budget], outcomes.below[:, budget], outcomes.worse[:, budget]
        if np.isnan(gains).any():
            return Judged(_UNKNOWN, _UNKNOWN, _UNKNOWN, math.nan)
        runs, prompts = gains.shape
        if runs == 1:
            chance = Interval(float((self._means(gains) < 0).mean()), math.nan, math.nan, prompts)
            return Judged(self.mean(gains), chance, _share(float(worse.mean()), prompts), math.nan)
        return Judged(
            gain=self.mean(gains),
            risk=_share(float(below.mean()), runs),
            prompt_risk=_share(float(worse.mean()), runs),
            spread=float(gains.mean(axis=1).std(ddof=1)),
        )

    def _means(self, gains: Floats) -> Floats:
        return np.asarray(((self._runs @ gains) * self._prompts).sum(axis=1))


def _share(value: float, n: int) -> Interval:
    """Wilson's interval, with the runs (or the prompts of a single run) as the number of observations."""
    return Interval(value, *wilson_bounds(value, float(n), _Z), n)
