"""Random problems for the theory's tables: rewards, noise variances, seeds."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.maths.ensemble import fit_priors

__all__ = ["Row", "difference", "generator", "moderated_variance", "normal", "standard_error", "uneven_variances"]

Row = dict[str, Any]
"""One line of a table, as plain JSON values."""


def generator(seed: int, table: int) -> torch.Generator:
    """Random stream of one table, so that one table's size doesn't change another's numbers."""
    return torch.Generator().manual_seed(1_000_003 * seed + table)


def normal(stream: torch.Generator, *shape: int) -> Tensor:
    """Standard normal draws in float64."""
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def uneven_variances(
    stream: torch.Generator, problems: int, actions: int, hetero: float
) -> Float[Tensor, "problems actions"]:
    """Variances whose square roots are lognormal with σ = hetero, scaled to a mean of 1 in each problem."""
    variance = (2 * hetero * normal(stream, problems, actions)).exp()
    return variance / variance.mean(dim=1, keepdim=True)


def moderated_variance(members: Float[Tensor, "problems actions members"]) -> Float[Tensor, "problems actions"]:
    """Moderated variance s̃² with a prior for each problem, fitted on its own actions (docs/method.md 3.2)."""
    raw, freedom = members.var(dim=2, correction=1), members.shape[2] - 1
    d0, s0 = (x[:, None] for x in fit_priors(raw, float(freedom)))
    return torch.where(d0.isinf(), s0, (d0 * s0 + freedom * raw) / (d0 + freedom))


def standard_error(share: float, draws: int) -> float:
    """Standard error of a share, with two more of each outcome (Agresti and Coull), so that 0 has one too."""
    share = (share * draws + 2) / (draws + 4)
    return math.sqrt(share * (1 - share) / (draws + 4))


def difference(first: Float[Tensor, "draws"], second: Float[Tensor, "draws"]) -> tuple[float, float]:
    """Mean of first − second over paired draws, and its standard error."""
    gap = first.double() - second.double()
    return float(gap.mean()), float(gap.std(correction=1)) / math.sqrt(len(gap))
