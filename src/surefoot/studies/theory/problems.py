"""Random problems for the theory's tables: rewards, noise variances, seeds."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Row", "generator", "normal", "standard_error", "uneven_variances"]

Row = dict[str, Any]
"""One line of a table: plain numbers and words, ready for JSON."""


def generator(seed: int, table: int) -> torch.Generator:
    """A stream of its own for each table, so that one table's size doesn't change another's numbers."""
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


def standard_error(share: float, draws: int) -> float:
    """Standard error of a share of `draws` (Agresti and Coull: two more of either sort), so that 0 has one too."""
    share = (share * draws + 2) / (draws + 4)
    return math.sqrt(share * (1 - share) / (draws + 4))
