"""The quadratic problems of the risk theorem, batched, in float64 (arXiv:2507.15906, section 4; docs/method.md 11.1).

    max R·d   subject to   Σ d = 0,   dᵀD d ≤ ε,   and optionally   d ≥ −π₀

d = π − π₀ is the update. D = 1 is the vanilla problem, D = Σ (the noise variances) the variance-aware one. Higher
reward is better; D is in reward² where it is a variance, so ε has the units of D.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.theory.budgets import Unreachable, checked_budget, find_beta, report
from surefoot.theory.exact import divergence

__all__ = [
    "project",
    "simplex_update",
    "simplex_update_at_kl",
    "simplex_update_within",
    "update",
    "update_within",
]


def project(
    reward: Float[Tensor, "problems actions"], metric: Float[Tensor, "problems actions"]
) -> Float[Tensor, "problems actions"]:
    """Direction M_D R = (R − c)/D of the update, c the mean of R weighted by 1/D; it sums to zero.

    M_D = D⁻¹ − D⁻¹11ᵀD⁻¹/(1ᵀD⁻¹1): the inverse of D on updates that sum to zero; P for D = 1.

    Args:
        reward: (problems, actions) R.
        metric: (problems, actions) diagonal of D > 0.

    Raises:
        DataError: a metric isn't positive and finite, or a reward isn't finite.

    >>> project(torch.tensor([[0.0, 3.0]]).double(), torch.tensor([[1.0, 2.0]]).double()).tolist()
    [[-1.0, 1.0]]
    """
    r, d = _checked(reward, metric)
    # R is measured from the action with the smallest D, whose own difference R − c would else lose its digits.
    shifted = r - r.gather(1, d.argmin(dim=1, keepdim=True))
    precision = d.min(dim=1, keepdim=True).values / d
    centre = (precision * shifted).sum(dim=1, keepdim=True) / precision.sum(dim=1, keepdim=True)
    return (shifted - centre) / d


def update(
    reward: Float[Tensor, "problems actions"],
    metric: Float[Tensor, "problems actions"],
    beta: Float[Tensor, "problems"] | float,
) -> Float[Tensor, "problems actions"]:
    """Optimum d = M_D R/β of R·d − (β/2) dᵀDd with Σd = 0."""
    scale = torch.as_tensor(beta, dtype=torch.float64, device=reward.device).reshape(-1, 1)
    if not bool((scale > 0).all()):
        raise ConfigError(f"β must be positive, got {float(scale.min())}")
    return project(reward, metric) / scale


def update_within(
    reward: Float[Tensor, "problems actions"],
    metric: Float[Tensor, "problems actions"],
    radius: Float[Tensor, "problems"] | float,
) -> Float[Tensor, "problems actions"]:
    """Optimum d = √ε M_D R/√(RᵀM_D R) of R·d with Σd = 0 and dᵀDd ≤ ε; 0 where all rewards are equal.

    Args:
        radius: (problems,) or one ε > 0, in units of D.
    """
    budget = checked_budget(radius, reward)
    direction = project(reward, metric)
    length = (metric * direction.square()).sum(dim=1).sqrt()
    return direction * torch.where(length > 0, budget.sqrt() / length, 0.0)[:, None]


def simplex_update(
    reward: Float[Tensor, "problems actions"],
    reference: Float[Tensor, "problems actions"],
    metric: Float[Tensor, "problems actions"],
    beta: Float[Tensor, "problems"] | float,
) -> Float[Tensor, "problems actions"]:
    """Exact optimum of R·d − (β/2) dᵀDd with Σd = 0 and π₀ + d ≥ 0.

    d = max(−π₀, (R − c)/(βD)). Action i is on its floor once c ≥ R_i + βD_iπ₀_i, so with the actions sorted by that
    value, the free ones come first. Each possible number of them gives a c; the consistent one is taken.

    Args:
        reference: (problems, actions) π₀ ≥ 0, each row summing to 1.
    """
    r, d = _checked(reward, metric)
    pi = _checked_reference(reference)
    scale = torch.as_tensor(beta, dtype=torch.float64, device=r.device).reshape(-1, 1)
    if not bool((scale > 0).all()):
        raise ConfigError(f"β must be positive, got {float(scale.min())}")
    stiffness = scale * d
    free = _free_actions(r, pi, stiffness)
    return _with_free(r, pi, stiffness, free)


def _free_actions(r: Tensor, pi: Tensor, stiffness: Tensor) -> Tensor:
    """Which actions stay above their floor −π₀, (problems, actions)."""
    top = r.max(dim=1, keepdim=True).values
    leaves = (r - top) + stiffness * pi
    leaves, order = leaves.sort(dim=1, descending=True)
    precision = (stiffness.min(dim=1, keepdim=True).values / stiffness).gather(1, order)
    mass = (pi.gather(1, order)).cumsum(dim=1) - 1
    wanted = (precision * (r - top).gather(1, order)).cumsum(dim=1)
    centre = (wanted + mass * stiffness.min(dim=1, keepdim=True).values) / precision.cumsum(dim=1)
    # The k-th action is free if c for the first k is below the value at which it leaves; true for a prefix.
    count = (leaves > centre).sum(dim=1, keepdim=True).clamp(min=1)
    rank = torch.arange(r.shape[1], device=r.device).expand_as(order)
    return torch.zeros_like(r, dtype=torch.bool).scatter(1, order, rank < count)


def _with_free(r: Tensor, pi: Tensor, stiffness: Tensor, free: Tensor) -> Tensor:
    """d for a known set of free actions; R is measured from the most sensitive of them (see `project`)."""
    stiff = torch.where(free, stiffness, torch.inf)
    least, pivot = stiff.min(dim=1, keepdim=True)
    shifted = r - r.gather(1, pivot)
    precision = torch.where(free, least / stiffness, 0.0)
    released = torch.where(free, 0.0, pi).sum(dim=1, keepdim=True)
    centre = ((precision * shifted).sum(dim=1, keepdim=True) - released * least) / precision.sum(dim=1, keepdim=True)
    return torch.where(free, torch.maximum((shifted - centre) / stiffness, -pi), -pi)


def simplex_update_within(
    reward: Float[Tensor, "problems actions"],
    reference: Float[Tensor, "problems actions"],
    metric: Float[Tensor, "problems actions"],
    radius: Float[Tensor, "problems"] | float,
) -> Float[Tensor, "problems actions"]:
    """Optimum of R·d with Σd = 0, π₀ + d ≥ 0 and dᵀDd ≤ ε; β has a relative error of 1e-12.

    Where ε allows all probability on the best actions, a larger ε changes nothing; equally good actions share the
    probability so that dᵀDd is least.

    Args:
        radius: (problems,) or one ε > 0, in units of D.
    """
    r, d = _checked(reward, metric)
    pi = _checked_reference(reference)
    target = checked_budget(radius, r)

    def measure(beta: Float[Tensor, "some"], rows: Int[Tensor, "some"]) -> Float[Tensor, "some"]:
        moved = simplex_update(r[rows], pi[rows], d[rows], beta)
        return (d[rows] * moved.square()).sum(dim=1)

    vertex = _best_vertex(r, pi, d)
    bound = (d * vertex.square()).sum(dim=1) <= target
    # Projecting on the simplex in the metric D shortens d, so the unconstrained β is large enough.
    direction = project(r, d)
    start = ((d * direction.square()).sum(dim=1) / target).sqrt()
    start = torch.where(bound | (start <= 0), 1.0, start * (1 + 1e-12))
    search = find_beta(measure, torch.where(bound, torch.inf, target), start, torch.where(bound, 1.0, 1e-30 * start))
    inside = simplex_update(r, pi, d, torch.where(search.reached, search.beta, 1.0))
    return torch.where(search.reached[:, None], inside, vertex)


def simplex_update_at_kl(
    reward: Float[Tensor, "problems actions"],
    reference: Float[Tensor, "problems actions"],
    metric: Float[Tensor, "problems actions"],
    budget: Float[Tensor, "problems"] | float,
    unreachable: Unreachable = "raise",
) -> Float[Tensor, "problems actions"]:
    """The update of `simplex_update` whose KL(π₀ + d‖π₀) is the budget, in nats; NaN or an error where none is."""
    r, d = _checked(reward, metric)
    pi = _checked_reference(reference)
    target = checked_budget(budget, r)

    def measure(beta: Float[Tensor, "some"], rows: Int[Tensor, "some"]) -> Float[Tensor, "some"]:
        moved = simplex_update(r[rows], pi[rows], d[rows], beta)
        return divergence((moved / pi[rows]).clamp(min=-1.0).log1p(), pi[rows].log())

    # An update that moves mass m has KL ≤ m (1 + ln(1/min π₀)) < 750 m; π₀ > 0 in float64 is above 1e-324.
    start = 750 * project(r, d).abs().sum(dim=1) / target
    start = torch.where(start > 0, start, 1.0)
    search = find_beta(measure, target, start, 1e-30 * start)
    report(search, target, unreachable, "KL")
    best = simplex_update(r, pi, d, torch.where(search.reached, search.beta, 1.0))
    return torch.where(search.reached[:, None], best, torch.nan)


def _best_vertex(r: Tensor, pi: Tensor, d: Tensor) -> Tensor:
    """Limit β → 0: all probability on the best actions, shared among equal ones so that dᵀDd is least."""
    best = r == r.max(dim=1, keepdim=True).values
    precision = torch.where(best, d.min(dim=1, keepdim=True).values / d, 0.0)
    freed = torch.where(best, 0.0, pi).sum(dim=1, keepdim=True)
    return torch.where(best, freed * precision / precision.sum(dim=1, keepdim=True), -pi)


def _checked(reward: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    r, d = reward.to(torch.float64), metric.to(torch.float64)
    for what, bad in (("reward", ~r.isfinite()), ("metric", ~((d > 0) & d.isfinite()))):
        if bool(bad.any()):
            problem, action = (int(i) for i in bad.nonzero()[0])
            rule = "finite" if what == "reward" else "positive and finite"
            raise DataError(f"the {what} of problem {problem}, action {action} must be {rule}")
    return r, d


def _checked_reference(reference: Tensor) -> Tensor:
    pi = reference.to(torch.float64)
    bad = ~((pi >= 0).all(dim=1) & ((pi.sum(dim=1) - 1).abs() < 1e-9))
    if bool(bad.any()):
        raise DataError(f"the reference of problem {int(bad.nonzero()[0])} isn't a probability distribution")
    return pi
