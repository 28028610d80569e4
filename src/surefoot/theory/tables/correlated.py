"""Table 5: risk where errors are correlated and the method takes Σ to be diagonal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.theory.gaussian_risk import full_margin, margin, risk, vanilla_margin
from surefoot.theory.tables.problems import Row, generator, normal, uneven_variances

__all__ = ["correlated_table"]

CORRELATIONS = (0.0, 0.2, 0.5, 0.8)
HETERO = (0.0, 0.5, 1.0)
KINDS = ("offset", "factor", "along_reward")
ACTIONS = 50


def correlated_table(seed: int, problems: int = 500) -> list[Row]:
    """Mean risk of three updates: vanilla, variance-aware with the true diagonal, and with the full Σ.

    Σ = S C S with S the standard deviations. A share ρ of each action's variance comes from a shared source:

    - "offset": all standardised errors move together, C = (1 − ρ) + ρ11ᵀ;
    - "factor": along one random direction of signs, C = (1 − ρ) + ρ ssᵀ, like an error about style;
    - "along_reward": the signs are those of the centred true rewards, so that the shared error looks true.
    """
    stream = generator(seed, 5)
    return [
        _row(stream, kind, hetero, correlation, problems)
        for kind in KINDS
        for hetero in HETERO
        for correlation in CORRELATIONS
    ]


def _row(stream: torch.Generator, kind: str, hetero: float, correlation: float, problems: int) -> Row:
    true = normal(stream, problems, ACTIONS)
    variance = uneven_variances(stream, problems, ACTIONS, hetero)
    wanted = 0.3 + 2.1 * torch.rand(problems, generator=stream, dtype=torch.float64)
    # The scale is set with independent errors, so that rows of one hetero differ in the correlation alone.
    true = true * (wanted / vanilla_margin(true, variance))[:, None]
    covariance = _covariance(variance, _signs(stream, kind, true), correlation)
    plain = risk(margin(true, torch.ones_like(true), covariance))
    aware = risk(margin(true, variance, covariance))
    return {
        "kind": kind,
        "hetero": hetero,
        "correlation": correlation,
        "problems": problems,
        "vanilla": float(plain.mean()),
        "variance_aware": float(aware.mean()),
        "full_covariance": float(risk(full_margin(true, covariance)).mean()),
        "worse": float((aware > plain * (1 + 1e-9)).double().mean()),
        "largest_excess": float((aware - plain).max()),
    }


def _signs(stream: torch.Generator, kind: str, true: Float[Tensor, "problems actions"]) -> Tensor:
    if kind == "offset":
        return torch.ones_like(true)
    if kind == "along_reward":
        return (true - true.mean(dim=1, keepdim=True)).sign()
    return normal(stream, *true.shape).sign()


def _covariance(
    variance: Float[Tensor, "problems actions"], signs: Float[Tensor, "problems actions"], correlation: float
) -> Float[Tensor, "problems actions actions"]:
    shared = signs * variance.sqrt()
    return torch.diag_embed((1 - correlation) * variance) + correlation * shared[:, :, None] * shared[:, None, :]
