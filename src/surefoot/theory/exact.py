"""Exact optima over a finite set of actions, batched over problems, in float64 (docs/method.md 9.1).

    ordinary   max E_π[r] − β Σ π ln(π/π₀)              π* ∝ π₀ exp(r/β)
    weighted   max E_π[r] − β D_w(π‖π₀)                 π* = π₀ exp((r − ν)/(βw))
    literal    max E_π[r] − β Σ w π ln(π/π₀)            weighted, with r ← r − βw

Higher reward is better; w is dimensionless; β and ν are in units of reward. Everything is computed from
log-probabilities, so a reference probability of 1e-300 is as good as any other, and 0 (a log of −∞) stays 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.maths.objectives import Form

__all__ = ["Form", "Optimum", "divergence", "literal_optimum", "optimum", "ordinary_optimum", "weighted_optimum"]

_ITERATIONS = 200
"""Largest number of Newton steps; about 60 is the bound of `_root`, so reaching this is a bug."""
_PROMISED = 1e-18
"""Predicted residual ln Σπ after the next step at which a root is accepted; a hundredth of rounding, for safety."""
_EARLY, _FAR = 6, 1e-3
"""For so many iterations, single rows are not tested for convergence while the largest residual is above this."""
_ROUNDING = 2.0**-51
_FIRST = 1e-8
"""Used as the residual before the first one, so that one step alone is accepted only from below 1e-11."""
_NORMALISED = 1e-6
_PRODUCTS = (1e-280, 1e280)
"""Smallest and largest βw, in units of reward, for which 1/(βw) can be computed."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """The optimal policy of each problem.

    Args:
        log_ratio: (problems, actions) ln(π*/π₀), in nats; exact to rounding even where π₀ is tiny.
        log_reference: (problems, actions) ln π₀.
        nu: (problems,) ν, the multiplier of Σπ = 1, in units of reward.
        beta: (problems,) β, in units of reward.
    """

    log_ratio: Float[Tensor, "problems actions"]
    log_reference: Float[Tensor, "problems actions"]
    nu: Float[Tensor, "problems"]
    beta: Float[Tensor, "problems"]

    @property
    def log_policy(self) -> Float[Tensor, "problems actions"]:
        return self.log_reference + self.log_ratio

    @property
    def policy(self) -> Float[Tensor, "problems actions"]:
        return self.log_policy.exp()

    @property
    def kl(self) -> Float[Tensor, "problems"]:
        """(problems,) KL(π*‖π₀) = E_π*[ln(π*/π₀)], in nats."""
        return divergence(self.log_ratio, self.log_reference)


def divergence(
    log_ratio: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"] | None = None,
) -> Float[Tensor, "problems"]:
    """Generalised KL D_w(π‖π₀) = Σ w π₀ (u eᵘ − eᵘ + 1), u = ln(π/π₀), in nats; w = 1 gives KL(π‖π₀).

    Written with expm1, so that a KL of 1e-16 still has eight digits.

    >>> zero = torch.zeros(1, 2, dtype=torch.float64)
    >>> float(divergence(zero, zero - 2.0**0.5))
    0.0
    """
    reference, policy = log_reference.exp(), (log_reference + log_ratio).exp()
    large = policy * log_ratio - policy + reference
    u = log_ratio.clamp(-1.0, 1.0)
    small = reference * (u * u.exp() - u.expm1())
    terms = torch.where(log_ratio.abs() < 1, small, large)
    # A policy of exactly 0 times a log-ratio of −∞ is 0 · −∞; its limit is π₀.
    terms = torch.where(policy == 0, reference, terms)
    return (terms if weight is None else weight * terms).sum(dim=-1)


@torch.no_grad()
def ordinary_optimum(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    beta: Float[Tensor, "problems"] | float,
) -> Optimum:
    """Optimum of the ordinary objective: π* ∝ π₀ exp(r/β), with ν = β ln Σ π₀ exp(r/β).

    Args:
        reward: (problems, actions) r.
        log_reference: (problems, actions) ln π₀, normalised; −∞ marks an action that can't be taken.
        beta: (problems,) or one β > 0.

    Raises:
        DataError, ConfigError: see `weighted_optimum`.

    >>> half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    >>> ordinary_optimum(torch.tensor([[0.0, 3.0]]).double().log1p(), half, 1.0).policy.tolist()
    [[0.2, 0.8]]
    """
    r, log_ref, _, _, b = _checked(reward, log_reference, reward.new_ones(1, 1), beta)
    top = _top(r, log_ref)
    scaled = (r - top) / b[:, None]
    # Exponents of actions that can't be taken may be anything, so they are taken out of the sum by ln π₀ = −∞.
    log_sum = torch.logsumexp(log_ref + scaled, dim=1)
    return Optimum(scaled - log_sum[:, None], log_ref, top[:, 0] + b * log_sum, b)


@torch.no_grad()
def weighted_optimum(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"],
    beta: Float[Tensor, "problems"] | float,
) -> Optimum:
    """Optimum of E_π[r] − β D_w(π‖π₀): π* = π₀ exp((r − ν)/(βw)), ν the one root of Σπ* = 1.

    Adding a constant to r adds it to ν and changes no policy. ν is exact to rounding: |ln Σπ*| ≤ 1e-12 for weights
    over 12 orders of magnitude.

    Args:
        reward: (problems, actions) r.
        log_reference: (problems, actions) ln π₀, normalised; −∞ marks an action that can't be taken.
        weight: (problems, actions) w > 0.
        beta: (problems,) or one β > 0.

    Raises:
        DataError: a reward or weight isn't finite, a weight isn't positive, or π₀ doesn't sum to 1 (the problem and
            the action are named).
        ConfigError: β isn't positive and finite.

    >>> half = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    >>> best = weighted_optimum(torch.tensor([[0.0, 1.0]]), half, torch.tensor([[1.0, 4.0]]), 0.5)
    >>> round(float(best.policy.sum()), 12)
    1.0
    """
    r, log_ref, reference, w, b = _checked(reward, log_reference, weight, beta)
    slope = torch.mul(w, b[:, None]).reciprocal_()
    # ν is kept as its distance δ to one action's reward: the action whose own probability (at most 1)
    # gives the largest lower bound of ν. Otherwise (r − ν)/(βw) would lose all digits where w is small.
    pivot = torch.addcdiv(r, log_ref, slope).max(dim=1, keepdim=True).indices
    base = r.gather(1, pivot)
    shifted = r - base
    start = (log_ref.gather(1, pivot) / slope.gather(1, pivot)).squeeze(1)
    delta = _root(shifted, log_ref, slope, torch.maximum(start, _jensen_bound(shifted, reference, slope)))
    return Optimum((shifted - delta[:, None]).mul_(slope), log_ref, base[:, 0] + delta, b)


@torch.no_grad()
def literal_optimum(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"],
    beta: Float[Tensor, "problems"] | float,
) -> Optimum:
    """Optimum of the paper's E_π[r] − β E_π[w ln(π/π₀)], `weighted_optimum` with r ← r − βw (docs/method.md 7.4).

    β enters twice. As β → ∞ the policy does not return to π₀ but to the minimiser of E_π[w ln(π/π₀)], which leans
    towards small weights.

    Args, Raises: see `weighted_optimum`.
    """
    r, log_ref, _, w, b = _checked(reward, log_reference, weight, beta)
    return weighted_optimum(r - b[:, None] * w, log_ref, w, b)


def optimum(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "problems actions"] | None,
    beta: Float[Tensor, "problems"] | float,
    form: Form = "generalized",
) -> Optimum:
    """Optimum for the weights and form of an `Objective`; None for the weights is the ordinary KL."""
    if weight is None:
        return ordinary_optimum(reward, log_reference, beta)
    solve = literal_optimum if form == "literal" else weighted_optimum
    return solve(reward, log_reference, weight, beta)


def _root(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    slope: Float[Tensor, "problems actions"],
    start: Float[Tensor, "problems"],
) -> Float[Tensor, "problems"]:
    """Solve f(ν) = ln Σ exp(ln π₀ + slope (r − ν)) = 0 by Newton's method from the left of the root.

    f is convex and decreasing, and 0 ≤ f(start) ≤ ln n, so every step goes right and none passes the root: convexity
    is the safeguard. For a convex function f·f′ falls by four or more at each step, which bounds the steps by
    log₄(κ ln n / 2⁻⁵¹), about 50 for slopes over 12 orders of magnitude; 5 to 10 is usual. Rows leave when done.
    """
    root, rows, nu = start.clone(), torch.arange(len(start), device=start.device), start
    height, c, mass = torch.addcmul(log_reference, slope, reward), slope, torch.empty_like(slope)
    last = torch.full_like(start, _FIRST)
    for iteration in range(_ITERATIONS):
        torch.mul(c, nu[:, None], out=mass)
        torch.sub(height, mass, out=mass).exp_()
        total, steepness = mass.sum(dim=1), mass.mul_(c).sum(dim=1)
        residual = total.log()
        nu = torch.addcdiv(nu, residual * total, steepness)
        if iteration < _EARLY and float(residual.max()) > _FAR:
            last = residual
            continue
        # Newton converges quadratically, so the next residual is about residual · (residual / last)².
        done = residual * (residual / last).square_() <= _PROMISED
        # Rounding of ν alone moves ln Σ by |ν| Σ π c; below that there is nothing to find.
        done |= residual <= _ROUNDING * (1 + nu.abs() * steepness)
        last = residual
        keep = (~done).nonzero().squeeze(1)
        if 2 * len(keep) <= len(nu):
            root[rows] = nu
            if len(keep) == 0:
                return root
            rows, nu, last = rows[keep], nu[keep], last[keep]
            height, c, mass = height[keep], c[keep], mass[keep]
    raise ArithmeticError(f"Newton's method on ν did not end in {_ITERATIONS} steps for {len(rows)} problems")


def _jensen_bound(
    reward: Float[Tensor, "problems actions"],
    reference: Float[Tensor, "problems actions"],
    slope: Float[Tensor, "problems actions"],
) -> Float[Tensor, "problems"]:
    """Lower bound of the root: by ln Σ π₀ exp(x) ≥ Σ π₀ x, ν is at least the mean of r weighted by π₀/w."""
    weight = reference * slope
    total = weight.sum(dim=1)
    terms = weight.mul_(reward)
    return (terms.sum(dim=1) - 1e-14 * terms.abs_().sum(dim=1)) / total


def _top(
    reward: Float[Tensor, "problems actions"], log_reference: Float[Tensor, "problems actions"]
) -> Float[Tensor, "problems 1"]:
    """The largest reward among actions that can be taken."""
    return torch.where(log_reference.isinf(), -torch.inf, reward).max(dim=1, keepdim=True).values


def _checked(
    reward: Float[Tensor, "problems actions"],
    log_reference: Float[Tensor, "problems actions"],
    weight: Float[Tensor, "rows columns"],
    beta: Float[Tensor, "problems"] | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Check the inputs and return r, ln π₀, π₀, w and β in float64; an error names the first bad value."""
    r, log_ref, w = (x.to(torch.float64) for x in (reward, log_reference, weight))
    if not math.isfinite(float(r.sum())):
        _refuse(~r.isfinite(), r, "the reward", "it must be finite")
    b = _checked_beta(beta, r)
    if r.numel():
        _check_weight(w, b)
    log_ref, reference = _normalised(log_ref)
    return r, log_ref, reference, w, b


def _normalised(log_reference: Float[Tensor, "problems actions"]) -> tuple[Tensor, Tensor]:
    """ln π₀ and π₀, normalised again where float32 left a sum other than 1."""
    reference = log_reference.exp()
    total = reference.sum(dim=1)
    off = (total - 1).abs()
    if not bool((off < _NORMALISED).all()):
        problem = int((~(off < _NORMALISED)).nonzero()[0])
        raise DataError(
            f"the reference probabilities of problem {problem} sum to {float(total[problem]):.12g}, not 1; "
            "pass normalised log-probabilities (log_softmax)"
        )
    if bool((off > 1e-14).any()):
        log_reference = log_reference - total.log()[:, None]
        reference = log_reference.exp()
    return log_reference, reference


def _check_weight(weight: Float[Tensor, "rows columns"], beta: Float[Tensor, "problems"]) -> None:
    least, most = (float(x) for x in torch.aminmax(weight))
    if not (least > 0 and most < math.inf):
        bad = ~((weight > 0) & weight.isfinite())
        _refuse(bad, weight, "the weight", "it must be positive and finite; use a floor")
    if least * float(beta.min()) < _PRODUCTS[0] or most * float(beta.max()) > _PRODUCTS[1]:
        raise ConfigError(f"βw leaves the range {_PRODUCTS[0]:g} to {_PRODUCTS[1]:g}, where 1/(βw) can be computed")


def _checked_beta(
    beta: Float[Tensor, "problems"] | float, reward: Float[Tensor, "problems actions"]
) -> Float[Tensor, "problems"]:
    b = torch.as_tensor(beta, dtype=torch.float64, device=reward.device).expand(len(reward))
    if not bool(((b > 0) & b.isfinite()).all()):
        raise ConfigError(f"β must be positive and finite, got {float(b[~((b > 0) & b.isfinite())][0])}")
    return b


def _refuse(bad: Tensor, values: Tensor, what: str, rule: str) -> None:
    if bool(bad.any()):
        problem, action = (int(i) for i in bad.nonzero()[0])
        raise DataError(f"{what} of problem {problem}, action {action} is {float(values[problem, action])}; {rule}")
