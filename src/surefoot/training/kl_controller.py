"""Adapt β to hold a KL budget: proportional-integral control of log β, in velocity form (docs/method.md 10).

The velocity form changes log β by a bounded step and keeps no accumulated error, so it can't wind up while β is at a
bound. β starts high, so that the budget is approached from below. It is lowered only as far as the penalty is what
holds the policy back; otherwise a slow policy would lose its penalty before it reaches the budget.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["KLController"]


@dataclass(slots=True)
class KLController:
    """Controller that keeps E[ln π/π₀] at `target` nats.

        Δ log β_t = proportional · (p_t − p_{t−1}) + integral · i_t,   |Δ log β_t| ≤ max_step
        e_t = log(KL_t / target), clipped to ±1, KL_t smoothed;   p_t = max(e_t, −near)
        i_t = e_t + return_gain · max(0, e_t − tolerance)   where e_t ≥ −tolerance
        i_t = approach · e_t · (share_t − free) / (bound − free)       below; the fraction clipped to [0, 1]

    The proportional part alone makes β ∝ KL² near and above the budget, which holds a policy that jumps, within a few
    updates, from one mode of its reward to another at several times the KL. The integral part is slow in comparison.

    Below the budget β is lowered only as far as the penalty is what holds the policy back. Its share is the spread of
    β·penalty among a prompt's completions over that of their rewards. For the optimum of the penalised objective,
    β ln(π/π₀) = r − const, it is 1; a policy whose share is small is slow for other reasons, and lowering β would only
    switch the penalty off before it is needed.

    Within the tolerance both sides of the budget count equally, so that noise doesn't push the KL below it. Above it
    β rises faster than it falls below, since exceeding the budget is worse than not using it.

    Args:
        target: budget in nats per sequence.
        beta: current coefficient; its first value should be high rather than low.
        smoothing: weight of the newest KL in the running mean, in (0, 1].
        proportional, integral, return_gain: gains per update.
        near: how far below the budget, in log KL, the proportional part begins.
        tolerance: of log KL over log target, above which `return_gain` counts, and below which `approach` does.
        approach: how much faster β falls far below the budget than it drifts near it.
        free, bound: shares of the penalty up to which β stays, and from which it is lowered at full speed.
        max_step: largest change of log β per update.
        minimum, maximum: bounds of β.

    >>> controller = KLController(target=8.0, beta=0.1)
    >>> controller.update(20.0) > 0.1
    True
    """

    target: float
    beta: float
    smoothing: float = 0.8
    proportional: float = 2.0
    integral: float = 0.06
    return_gain: float = 2.0
    approach: float = 2.0
    near: float = 0.6
    tolerance: float = 0.05
    free: float = 0.3
    bound: float = 0.7
    max_step: float = 1.0
    minimum: float = 1e-5
    maximum: float = 1e3
    kl: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if not (self.target > 0 and math.isfinite(self.target)):
            raise ConfigError(f"target_kl must be a positive number of nats, got {self.target}")
        if not self.minimum <= self.beta <= self.maximum:
            raise ConfigError(f"beta must start within [{self.minimum}, {self.maximum}], got {self.beta}")

    def update(self, kl: float, share: float = 1.0) -> float:
        """Take the newest batch and return the next β. A KL of NaN changes nothing.

        Args:
            kl: nats per sequence; may be noisy or negative.
            share: of the penalty, see above; 1 lets β fall whenever the KL is below its budget, NaN never.
        """
        if math.isnan(kl):
            return self.beta
        self.kl = kl if self.kl is None else self.kl + self.smoothing * (kl - self.kl)
        error = max(-1.0, min(1.0, math.log(max(self.kl, 1e-9) / self.target)))
        change = self.integral * self._pull(error, share)
        if self.error is not None:
            change += self.proportional * (max(error, -self.near) - max(self.error, -self.near))
        self.error = error
        step = max(-self.max_step, min(self.max_step, change))
        self.beta = max(self.minimum, min(self.maximum, self.beta * math.exp(step)))
        return self.beta

    def _pull(self, error: float, share: float) -> float:
        """Term i_t of the integral part."""
        if error >= -self.tolerance:
            return error + self.return_gain * max(0.0, error - self.tolerance)
        if math.isnan(share):
            return 0.0
        return self.approach * error * max(0.0, min(1.0, (share - self.free) / (self.bound - self.free)))

    def state_dict(self) -> dict[str, Any]:
        """State that the next update depends on, as JSON values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "KLController":
        return cls(**{field.name: state[field.name] for field in fields(cls) if field.name in state})
