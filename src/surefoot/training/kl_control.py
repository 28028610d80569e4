"""β adapts so that the policy stays on a KL budget: proportional-integral control of log β, in velocity form.

The velocity form changes log β by a bounded step and keeps no accumulated error, so it can't wind up while β sits at a
bound. β starts high, so the budget is approached from below.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["KLController"]


@dataclass(slots=True)
class KLController:
    """Keeps E[ln π/π₀] at `target` nats.

        Δ log β_t = proportional · (e_t − e_{t−1}) + integral · (e_t + return_gain · max(0, e_t − tolerance))
        e_t = log(KL_t / target), clipped to ±1, KL_t smoothed;   |Δ log β_t| ≤ max_step

    The proportional part alone makes β ∝ KL²: stiff enough for a policy that jumps, within a few updates, from one
    mode of its reward to another at several times the KL. The integral part is slow beside it.

    Within the tolerance both sides of the budget count alike, so that noise doesn't push the KL below it; above it,
    coming back is more urgent than using the budget up.

    Args:
        target: budget in nats per sequence.
        beta: current coefficient; its first value should be high rather than low.
        smoothing: weight of the newest KL in the running mean, in (0, 1].
        proportional, integral, return_gain: gains per update.
        tolerance: of log KL over log target, above which `return_gain` counts.
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
    tolerance: float = 0.05
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

    def update(self, kl: float) -> float:
        """Take the KL of the newest batch (nats per sequence; may be noisy or negative) and return the next β.

        A NaN is passed over: nothing is known, so nothing changes.
        """
        if math.isnan(kl):
            return self.beta
        self.kl = kl if self.kl is None else self.kl + self.smoothing * (kl - self.kl)
        error = max(-1.0, min(1.0, math.log(max(self.kl, 1e-9) / self.target)))
        change = self.integral * (error + self.return_gain * max(0.0, error - self.tolerance))
        if self.error is not None:
            change += self.proportional * (error - self.error)
        self.error = error
        step = max(-self.max_step, min(self.max_step, change))
        self.beta = max(self.minimum, min(self.maximum, self.beta * math.exp(step)))
        return self.beta

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as JSON values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "KLController":
        return cls(**{field.name: state[field.name] for field in fields(cls)})
