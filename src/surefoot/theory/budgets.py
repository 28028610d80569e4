"""The β at which a policy meets a KL budget, batched over problems.

At the same β different objectives move different distances from π₀, so methods are compared at equal KL
(docs/method.md 9.2). For the ordinary objective KL falls as β grows, and β is unique. With weights it need not: a
policy may first lean to a rare action with little variance and later to a common one. Then the largest β is taken,
which is the smallest change of the objective that spends the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.theory.exact import Form, Optimum, optimum

__all__ = ["Search", "checked_budget", "find_beta", "optimum_at_kl", "report"]

Measure = Callable[[Float[Tensor, "some"], Int[Tensor, "some"]], Float[Tensor, "some"]]
"""Function of (β, rows) that gives a measure of those rows' policies, such as their KL."""
Unreachable = Literal["raise", "nan"]

_TOLERANCE = 1e-13
"""Width of the final bracket of ln β, so that β is found to about 1e-13 of itself."""


@torch.no_grad()
def optimum_at_kl(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"] | None,
    budget: Float[Tensor, "problems"] | float,
    form: Form = "generalized",
    unreachable: Unreachable = "raise",
) -> Optimum:
    """Optimum whose KL(π‖π₀) = E_π[ln(π/π₀)] is the budget; β has a relative error of 1e-12.

    Args:
        reward: (problems, actions) r.
        log_reference: (problems, actions) ln π₀, normalised.
        weight: (problems, actions) w > 0, or None for the ordinary objective.
        budget: (problems,) or one KL > 0, in nats.
        form: "literal" may have no small KL at all, since it doesn't tend to π₀ (see `literal_optimum`).
        unreachable: what to do with a problem whose policies never have that KL, such as −ln π₀ of its best actions
            or more: "raise", or give "nan" in its ν, β and log-ratio.

    Raises:
        ConfigError: a budget isn't positive, or (with "raise") can't be reached; the problem is named with the KLs
            that it can reach.
        DataError: see `weighted_optimum`.
    """
    r, log_ref = reward.to(torch.float64), log_reference.to(torch.float64)
    target = checked_budget(budget, r)
    w = torch.ones_like(r) if weight is None else weight.to(torch.float64)
    # Also checks the inputs, before any search.
    optimum(r, log_ref, weight, 1.0, form)
    literal = form == "literal" and weight is not None

    def measure(beta: Float[Tensor, "some"], rows: Int[Tensor, "some"]) -> Float[Tensor, "some"]:
        chosen = None if weight is None else w[rows]
        return optimum(r[rows], log_ref[rows], chosen, beta, form).kl

    start, end = _search_range(r, log_ref, w, target, literal)
    search = find_beta(measure, target, start, end)
    report(search, target, unreachable, "KL")
    usable = torch.where(search.reached, search.beta, 1.0)
    best = optimum(r, log_ref, weight, usable, form)
    nothing = torch.where(search.reached, 0.0, torch.nan)
    return Optimum(best.log_ratio + nothing[:, None], best.log_reference, best.nu + nothing, usable + nothing)


def _search_range(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"],
    target: Float[Tensor, "problems"],
    literal: bool,
) -> tuple[Float[Tensor, "problems"], Float[Tensor, "problems"]]:
    """Largest and smallest β of the search.

    At the largest the policy is within the budget: with h = range(r)/(β min w), |ln(π/π₀)| ≤ h, so KL ≤ h and
    KL ≤ h² e^h / 2. At the smallest the best action has all probability: the rewards differ by at least rounding, and
    exp(−1000) is 0.
    """
    possible = log_reference > -torch.inf
    top = torch.where(possible, reward, -torch.inf).max(dim=1).values
    low = torch.where(possible, reward, torch.inf).min(dim=1).values
    reach = torch.where(top > low, top - low, 1.0)
    least = torch.where(possible, weight, torch.inf).min(dim=1).values
    most = torch.where(possible, weight, -torch.inf).max(dim=1).values
    h = torch.maximum(target, (0.85 * target.sqrt()).clamp(max=0.85))
    start = reach / least / (h.clamp(max=1e-6) if literal else h)
    end = torch.minimum(reach / most * 2.0**-52 / 1000, start / 2)
    # Within what 1/(βw) can be computed for.
    return torch.minimum(start, 1e270 / most), torch.maximum(end, 1e-270 / least)


@dataclass(frozen=True, eq=False)
class Search:
    """Result of a search: β where the target was reached, and the range of the measures that were computed."""

    beta: Float[Tensor, "problems"]
    reached: Bool[Tensor, "problems"]
    least: Float[Tensor, "problems"]
    most: Float[Tensor, "problems"]


def find_beta(
    measure: Measure,
    target: Float[Tensor, "problems"],
    start: Float[Tensor, "problems"],
    end: Float[Tensor, "problems"],
) -> Search:
    """Find the largest β below `start` at which the measure crosses `target`: halve β until it does, then refine.

    Two crossings within one halving are missed; the result is then a later crossing.
    """
    rows = torch.arange(len(start), device=start.device)
    upper, value = start.clone(), measure(start, rows)
    lower, below = upper.clone(), value.clone()
    least, most = value.clone(), value.clone()
    side = (value - target).sign()
    open_ = side != 0
    while len(rows := (open_ & (upper > end)).nonzero().squeeze(1)):
        beta = upper[rows] / 2
        seen = measure(beta, rows)
        least[rows], most[rows] = torch.minimum(least[rows], seen), torch.maximum(most[rows], seen)
        crossed = (seen - target[rows]).sign() != side[rows]
        hit, missed = rows[crossed], rows[~crossed]
        lower[hit], below[hit] = beta[crossed], seen[crossed]
        open_[hit] = False
        upper[missed], value[missed] = beta[~crossed], seen[~crossed]
    reached = ~open_
    beta = _refine(measure, target, (lower, below), (upper, value), reached)
    return Search(torch.where(reached, beta, torch.nan), reached, least, most)


Bound = tuple[Float[Tensor, "problems"], Float[Tensor, "problems"]]


def _refine(
    measure: Measure, target: Float[Tensor, "problems"], lower: Bound, upper: Bound, reached: Bool[Tensor, "problems"]
) -> Float[Tensor, "problems"]:
    """Refine a bracket of ln β by Chandrupatla's method: inverse quadratic steps where safe, else bisection.

    Source: Chandrupatla (1997), "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear
    function without using derivatives".
    """
    a, fa = lower[0].log(), lower[1] - target
    b, fb = upper[0].log(), upper[1] - target
    best = torch.where(fa.abs() < fb.abs(), a, b)
    rows = (reached & (a != b) & (fa != 0) & (fb != 0)).nonzero().squeeze(1)
    x1, f1, x2, f2 = b[rows], fb[rows], a[rows], fa[rows]
    x3, f3 = x2, f2
    share = torch.full_like(x1, 0.5)
    for _ in range(200):
        if len(rows) == 0:
            break
        x = x1 + share * (x2 - x1)
        f = measure(x.exp(), rows) - target[rows]
        same = f.sign() == f1.sign()
        x3, f3 = torch.where(same, x1, x2), torch.where(same, f1, f2)
        x2, f2 = torch.where(same, x2, x1), torch.where(same, f2, f1)
        x1, f1 = x, f
        best[rows] = torch.where(f1.abs() < f2.abs(), x1, x2)
        least = _TOLERANCE / (x2 - x1).abs()
        keep = ~((least > 0.5) | (f1 == 0))
        rows, x1, f1, x2, f2, x3, f3, least = (v[keep] for v in (rows, x1, f1, x2, f2, x3, f3, least))
        share = torch.maximum(torch.minimum(_share(x1, f1, x2, f2, x3, f3), 1 - least), least)
    return best.exp()


def _share(x1: Tensor, f1: Tensor, x2: Tensor, f2: Tensor, x3: Tensor, f3: Tensor) -> Tensor:
    """Next point as a share of [x1, x2]: inverse quadratic through three points if that is monotone, else 1/2."""
    xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
    trusted = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
    step = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
    return torch.where(trusted & step.isfinite(), step, 0.5)


def report(search: Search, target: Float[Tensor, "problems"], unreachable: Unreachable, what: str) -> None:
    """Raise ConfigError for the first problem whose target was not reached, if `unreachable` says so."""
    if unreachable == "raise" and not bool(search.reached.all()):
        problem = int((~search.reached).nonzero()[0])
        raise ConfigError(
            f"problem {problem} has no β with {what} {float(target[problem]):.6g}: its policies reach from "
            f"{float(search.least[problem]):.6g} to {float(search.most[problem]):.6g}; choose a budget in between"
        )


def checked_budget(
    budget: Float[Tensor, "problems"] | float, reward: Float[Tensor, "problems actions"]
) -> Float[Tensor, "problems"]:
    target = torch.as_tensor(budget, dtype=torch.float64, device=reward.device).expand(len(reward))
    if not bool(((target > 0) & target.isfinite()).all()):
        raise ConfigError("a budget must be positive and finite; the policy at budget 0 is the reference itself")
    return target
