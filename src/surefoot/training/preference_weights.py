"""Weights of preference pairs for offline alignment: computed once, stored as columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from datasets import Dataset

from surefoot.errors import DataError, VarianceError
from surefoot.maths.objectives import weights
from surefoot.rewards.source import RewardSource

__all__ = ["VARIANCES", "WEIGHTS", "add_variances", "add_weights"]

VARIANCES = ("chosen_variance", "rejected_variance")
"""Columns that `surefoot score` writes, in reward²."""
WEIGHTS = ("chosen_weight", "rejected_weight")
"""Columns that the trainer reads; their mean over all sides is 1 before floor and ceiling."""


def add_variances(
    pairs: Dataset, source: RewardSource, *, rows: int = 1024, on_progress: Callable[[float], None] | None = None
) -> Dataset:
    """The pairs with the variance of either side's reward, centred over the two, as `surefoot score` has it.

    Args:
        pairs: `prompt`, `chosen`, `rejected`.
        rows: pairs scored at a time.
        on_progress: called with the share done.

    Raises:
        VarianceError: the source has one member.
    """
    found: list[list[torch.Tensor]] = [[], []]
    for start in range(0, len(pairs), rows):
        part = pairs[start : start + rows]
        sides = [source.score(part["prompt"], part[side]) for side in ("chosen", "rejected")]
        count = len(sides[0])
        variance = source.estimate(torch.cat(sides), torch.arange(count).repeat(2)).variance
        found[0].append(variance[:count])
        found[1].append(variance[count:])
        if on_progress is not None:
            on_progress(min(1.0, (start + count) / len(pairs)))
    for name, values in zip(VARIANCES, found, strict=True):
        pairs = pairs.add_column(name, torch.cat(values).tolist())
    return pairs


def add_weights(pairs: Dataset, floor: float = 0.1, ceiling: float = 10.0) -> Dataset:
    """The pairs with w = s²/s̄² of either side (DESIGN 2.3), s̄² the mean over both sides of all pairs.

    Raises:
        DataError: a variance column is missing, or holds None or NaN (the row is named).
        VarianceError: all variances are zero.
    """
    missing = [name for name in VARIANCES if name not in pairs.column_names]
    if missing:
        raise DataError(
            f"the pairs have no {' and no '.join(missing)}; add them with `surefoot score`, or give a reward source"
        )
    sides = []
    for name in VARIANCES:
        values = torch.tensor([float("nan") if v is None else float(v) for v in pairs[name]], dtype=torch.float64)
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise DataError(f"row {row} has no finite {name}; it could not be scored. Drop the row or score it again")
        sides.append(values)
    mean = float(torch.cat(sides).mean())
    if mean <= 0:
        raise VarianceError("every variance is zero: weighting has nothing to work with; use weights='none'")
    for name, values in zip(WEIGHTS, sides, strict=True):
        pairs = pairs.add_column(name, weights(values, mean, floor, ceiling).tolist())
    return pairs
