"""Table 4: mean gain against risk at matched KL, for every objective that surefoot offers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.objectives import Objective, aggregate, preset, weights
from surefoot.theory.budgets import optimum_at_kl
from surefoot.theory.tables.problems import (
    Row,
    difference,
    generator,
    moderated_variance,
    normal,
    standard_error,
    uneven_variances,
)
from surefoot.types import RewardEstimate

__all__ = ["METHODS", "frontier_table", "pessimism_table"]

HETERO = (0.0, 0.5, 1.0)
REWARD_SD = (0.125, 0.5)
"""Standard deviations of the true rewards (reward gaps); the members' errors have a mean variance of 1."""
BUDGETS = (0.3, 1.0, 3.0)
ACTIONS, MEMBERS = 50, 5
METHODS = ("vanilla", "mean", "variance_aware", "literal", "lcb", "uwo", "wco", "kl_robust", "cvar")
KNOWN = "variance_aware_known"
"""Name of variance-aware weighting with the true variances: the upper end for better estimates."""


@dataclass(frozen=True, eq=False)
class _Problems:
    true: Float[Tensor, "problems actions"]
    log_reference: Float[Tensor, "problems actions"]
    variance: Float[Tensor, "problems actions"]
    estimate: RewardEstimate

    def shaped(self, rows: Float[Tensor, "batch"]) -> Float[Tensor, "problems actions"]:
        return rows.view_as(self.true)


def frontier_table(seed: int, problems: int = 1000) -> list[Row]:
    """Risk, spread, gain and over-optimisation by degree of unequal variance, reward gap, budget and method.

    A problem has an uneven reference, true rewards, true variances and K = 5 members; "vanilla" uses the first
    member alone. All methods of a problem see the same members, and each optimises exactly at its own β for the
    budget. Problems in which some method can't reach the budget (its best action is too likely already) are left out
    for all.
    """
    stream = generator(seed, 4)
    rows = []
    for hetero in HETERO:
        for reward_sd in REWARD_SD:
            drawn = _draw(stream, problems, hetero, reward_sd)
            for kl in BUDGETS:
                start = {"hetero": hetero, "reward_sd": reward_sd, "kl": kl}
                rows += [start | row for row in _compare(drawn, kl)]
    return rows


def _compare(drawn: _Problems, kl: float) -> list[Row]:
    by_method = {method: _gains(drawn, method, kl) for method in (*METHODS, KNOWN)}
    met = torch.stack([gains for gains, _ in by_method.values()]).isfinite().all(dim=0)
    ours = by_method["variance_aware"][0][met]
    return [{"method": name} | _row(gains[met], promised[met], ours) for name, (gains, promised) in by_method.items()]


def _draw(stream: torch.Generator, problems: int, hetero: float, reward_sd: float) -> _Problems:
    true = reward_sd * normal(stream, problems, ACTIONS)
    log_reference = normal(stream, problems, ACTIONS).log_softmax(dim=1)
    variance = uneven_variances(stream, problems, ACTIONS, hetero)
    members = true[..., None] + variance.sqrt()[..., None] * normal(stream, problems, ACTIONS, MEMBERS)
    moderated = moderated_variance(members)
    flat = members.flatten(0, 1)
    estimate = RewardEstimate(
        mean=flat.mean(dim=1),
        members=flat,
        epistemic=moderated.flatten(),
        degrees_of_freedom=torch.full((len(flat),), MEMBERS - 1.0, dtype=torch.float64),
    )
    return _Problems(true, log_reference, variance, estimate)


def _gains(drawn: _Problems, method: str, kl: float) -> tuple[Float[Tensor, "problems"], Float[Tensor, "problems"]]:
    """True gain and proxy gain of each problem's optimum; NaN where the budget can't be reached."""
    objective = preset("variance_aware" if method == KNOWN else method)
    proxy = drawn.shaped(aggregate(drawn.estimate, objective))
    variance = drawn.variance if method == KNOWN else drawn.shaped(drawn.estimate.variance)
    weight = _weights(variance, drawn.log_reference, objective) if objective.weights == "variance" else None
    best = optimum_at_kl(proxy, drawn.log_reference, weight, kl, objective.form, unreachable="nan")
    move = best.policy - drawn.log_reference.exp()
    return torch.linalg.vecdot(move, drawn.true), torch.linalg.vecdot(move, proxy)


def _row(gains: Float[Tensor, "met"], promised: Float[Tensor, "met"], ours: Float[Tensor, "met"]) -> Row:
    count, lost = len(gains), gains < 0
    share, spread = float(lost.double().mean()), float(gains.std(correction=1))
    more_gain, gain_error = difference(gains, ours)
    more_risk, risk_error = difference(lost, ours < 0)
    return {
        "problems": count,
        "risk": share,
        "risk_error": standard_error(share, count),
        "spread": spread,
        "gain": float(gains.mean()),
        "gain_error": spread / count**0.5,
        "over_optimisation": float((promised - gains).mean()),
        "gain_over_ours": more_gain,
        "gain_over_ours_error": gain_error,
        "risk_over_ours": more_risk,
        "risk_over_ours_error": risk_error,
    }


def _weights(
    variance: Float[Tensor, "problems actions"], log_reference: Float[Tensor, "problems actions"], objective: Objective
) -> Float[Tensor, "problems actions"]:
    """Weights with a mean of 1 under each problem's reference policy, before floor and ceiling."""
    mean = (log_reference.exp() * variance).sum(dim=1, keepdim=True)
    relative = (variance / mean).flatten()
    return weights(relative, 1.0, objective.weight_floor, objective.weight_ceiling).view_as(variance)


def pessimism_table(rows: list[Row]) -> list[Row]:
    """Methods with a larger mean gain or smaller risk than variance weighting, by two paired standard errors.

    One row for each hetero, reward gap and budget.
    """
    keys = sorted({(row["hetero"], row["reward_sd"], row["kl"]) for row in rows})
    table = []
    for hetero, reward_sd, kl in keys:
        here = [r for r in rows if (r["hetero"], r["reward_sd"], r["kl"]) == (hetero, reward_sd, kl)]
        rivals = [row for row in here if row["method"] != KNOWN]
        gain = [r["method"] for r in rivals if r["gain_over_ours"] > 2 * r["gain_over_ours_error"]]
        risk = [r["method"] for r in rivals if -r["risk_over_ours"] > 2 * r["risk_over_ours_error"]]
        table.append({"hetero": hetero, "reward_sd": reward_sd, "kl": kl, "larger_gain": gain, "smaller_risk": risk})
    return table
