"""Exact policies on candidates of the reference policy: one β for all prompts, at every KL budget (docs/theory.md).

The reference policy is uniform over a prompt's candidates, since it drew them. The optimum of an objective is then
known in closed form (`surefoot.theory.exact`), and β is the one at which the mean KL over prompts is the budget, as a
trainer's `target_kl` holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.theory.exact import Form, Optimum, optimum

__all__ = ["Policies", "largest_budget", "policies_at_budgets", "uniform_reference"]

_HALVINGS = 120
"""Of β, from where the policy is still at the reference: a factor of 1e36."""
_TOLERANCE = 1e-6
"""Of ln β."""


@dataclass(frozen=True, eq=False)
class Policies:
    """The policies of one objective, a row for each budget; NaN where a budget can't be reached.

    Args:
        beta: (budgets,) in units of reward.
        kl: (budgets,) mean over prompts, in nats.
        policy: (budgets, prompts, candidates) probabilities.
        effective: (budgets,) 1/Σπ² of a prompt, mean over prompts: how many candidates still count.
    """

    beta: Float[Tensor, "budgets"]
    kl: Float[Tensor, "budgets"]
    policy: Float[Tensor, "budgets prompts candidates"]
    effective: Float[Tensor, "budgets"]

    @property
    def reached(self) -> Bool[Tensor, "budgets"]:
        return ~self.beta.isnan()


def largest_budget(candidates: int) -> float:
    """ln n − 1, in nats: beyond it, less than e of n candidates carry a policy, and they are too few to stand for it.

    >>> round(largest_budget(64), 2)
    3.16
    """
    return math.log(candidates) - 1


def uniform_reference(scored: Bool[Tensor, "prompts candidates"]) -> Float[Tensor, "prompts candidates"]:
    """ln π₀, uniform over a prompt's scored candidates; −∞ where a candidate has no reward.

    >>> uniform_reference(torch.tensor([[True, True, False]])).exp().tolist()
    [[0.5, 0.5, 0.0]]
    """
    count = scored.sum(dim=1, keepdim=True).to(torch.float64)
    return torch.where(scored, -count.log(), -torch.inf)


def policies_at_budgets(
    reward: Float[Tensor, "prompts candidates"],
    weight: Float[Tensor, "prompts candidates"] | None,
    log_reference: Float[Tensor, "prompts candidates"],
    budgets: Sequence[float],
    form: Form = "generalized",
) -> Policies:
    """The optimum with one β for all prompts at which the mean KL over prompts is each budget.

    β is followed down from where the policy is the reference; its first crossing of a budget is taken.

    Args:
        reward: (prompts, candidates) r̃; anything finite where ln π₀ is −∞.
        weight: (prompts, candidates) w > 0, or None for the ordinary KL.
        log_reference: (prompts, candidates) ln π₀, normalised.
        budgets: in nats, positive, rising.

    Raises:
        ConfigError: budgets aren't positive and rising. DataError: see `surefoot.theory.exact`.
    """
    if not budgets or min(budgets) <= 0 or list(budgets) != sorted(set(budgets)):
        raise ConfigError(f"KL budgets must be positive and rising, got {', '.join(f'{b:g}' for b in budgets)}")

    def solve(log_beta: float) -> Optimum:
        return optimum(reward, log_reference, weight, math.exp(log_beta), form)

    @cache  # the search asks for the ends of its brackets again
    def mean_kl(log_beta: float) -> float:
        return float(solve(log_beta).kl.mean())

    start = _start(reward, weight, log_reference, budgets[0], form)
    path = _path(mean_kl, start, budgets[-1])
    betas = [_crossing(mean_kl, path, budget) for budget in budgets]
    optima = [None if beta is None else solve(beta) for beta in betas]
    unknown = torch.full_like(log_reference, torch.nan)
    policy = torch.stack([unknown if best is None else best.policy for best in optima])
    kl = torch.stack([unknown.new_tensor(torch.nan) if best is None else best.kl.mean() for best in optima])
    beta = torch.tensor([math.nan if value is None else math.exp(value) for value in betas], dtype=torch.float64)
    return Policies(beta, kl, policy, policy.square().sum(dim=-1).reciprocal().mean(dim=-1))


def _start(reward: Tensor, weight: Tensor | None, log_reference: Tensor, budget: float, form: Form) -> float:
    """ln β at which every prompt's KL is below the budget: with h = range(r)/(β min w), KL ≤ h² eʰ/2.

    The literal form doesn't tend to π₀; there β starts where it has stopped to matter.
    """
    possible = log_reference > -torch.inf
    top = torch.where(possible, reward, -torch.inf).max(dim=1).values
    low = torch.where(possible, reward, torch.inf).min(dim=1).values
    reach = max(float((top - low).max()), 1e-12)
    least = 1.0 if weight is None else float(weight[possible].min())
    h = 1e-6 if form == "literal" and weight is not None else min(0.85, 0.85 * math.sqrt(budget))
    return math.log(reach / least / h)


def _path(mean_kl: Callable[[float], float], start: float, most: float) -> list[tuple[float, float]]:
    """(ln β, mean KL) while β is halved, until the KL has passed `most` or stops changing."""
    path = [(start, mean_kl(start))]
    for _ in range(_HALVINGS):
        if path[-1][1] > most:
            break
        path.append((path[-1][0] - math.log(2), mean_kl(path[-1][0] - math.log(2))))
        if len(path) > 20 and path[-1][1] > 1e-3 and abs(path[-1][1] - path[-4][1]) < 1e-9:
            break  # the best candidates have it all
    return path


def _crossing(mean_kl: Callable[[float], float], path: list[tuple[float, float]], budget: float) -> float | None:
    """ln β where the mean KL first crosses the budget; None if the path doesn't."""
    for (above, before), (below, after) in pairwise(path):
        if (before - budget) * (after - budget) <= 0 and before != after:
            return float(brentq(lambda x: mean_kl(x) - budget, below, above, xtol=_TOLERANCE))
    return None
