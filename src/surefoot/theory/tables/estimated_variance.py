"""Table 3: risk when the variance is estimated from the K members that give the reward (docs/method.md 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.theory.quadratic import project
from surefoot.theory.tables.problems import (
    Row,
    difference,
    generator,
    moderated_variance,
    normal,
    standard_error,
    uneven_variances,
)

__all__ = ["estimated_variance_table", "smallest_members"]

MEMBERS = (2, 3, 5, 10, 30)
HETERO = (0.0, 0.25, 0.5, 1.0)
ACTIONS = 50
REWARD_SD = 0.128
"""Standard deviation of the true rewards; the members' mean variance is 1. Sets the risks' size, not their order."""
METHODS = ("ignored", "raw", "moderated", "known")


def estimated_variance_table(seed: int, draws: int = 4000) -> list[Row]:
    """Risk of four metrics for each degree of unequal variance and each K, and paired differences to ignoring.

    A draw is a new problem: true rewards, true variances, K members R_k ~ N(r*, Σ). All methods use the members' mean
    as reward and differ in the metric of the update: 1, the raw s², the moderated s̃² (prior fitted on the same
    actions), or the true variance.
    """
    stream = generator(seed, 3)
    return [_row(stream, hetero, members, draws) for hetero in HETERO for members in MEMBERS]


def _row(stream: torch.Generator, hetero: float, members: int, draws: int) -> Row:
    true = REWARD_SD * normal(stream, draws, ACTIONS)
    variance = uneven_variances(stream, draws, ACTIONS, hetero)
    scores = true[..., None] + variance.sqrt()[..., None] * normal(stream, draws, ACTIONS, members)
    raw = scores.var(dim=2, correction=1)
    metrics = (torch.ones_like(raw), raw, moderated_variance(scores), variance)
    lost = {name: _lost(true, scores.mean(dim=2), metric) for name, metric in zip(METHODS, metrics, strict=True)}
    shares = {name: float(losses.double().mean()) for name, losses in lost.items()}
    errors = {f"{name}_error": standard_error(share, draws) for name, share in shares.items()}
    against = {}
    for name in METHODS[1:]:
        against[f"{name}_minus_ignored"], against[f"{name}_minus_ignored_error"] = difference(
            lost[name], lost["ignored"]
        )
    return {"hetero": hetero, "K": members, "draws": draws, **shares, **errors, **against}


def _lost(
    true: Float[Tensor, "draws actions"], proxy: Float[Tensor, "draws actions"], metric: Float[Tensor, "draws actions"]
) -> Bool[Tensor, "draws"]:
    return torch.linalg.vecdot(project(proxy, metric), true) <= 0


def smallest_members(rows: list[Row]) -> list[Row]:
    """Smallest K from which each method beats ignoring the variance, for each degree of unequal variance.

    It must be better by two standard errors at that K, and not worse by two at any larger K of the table (where both
    risks may be too small to be told apart). None if there is no such K.
    """
    table = []
    for hetero in sorted({row["hetero"] for row in rows}):
        here = sorted((row for row in rows if row["hetero"] == hetero), key=lambda row: -int(row["K"]))
        table.append({"hetero": hetero} | {name: _smallest(here, name) for name in METHODS[1:]})
    return table


def _smallest(rows: list[Row], name: str) -> int | None:
    """The smallest K of one method; `rows` run from the largest K down."""
    smallest = None
    for row in rows:
        gap, error = row[f"{name}_minus_ignored"], row[f"{name}_minus_ignored_error"]
        if gap > 0 and gap >= 2 * error:
            break
        if gap < 0 and gap <= -2 * error:
            smallest = int(row["K"])
    return smallest
