"""Weights of a batch from what came with each row's reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError
from surefoot.maths.objectives import Objective, weights

__all__ = ["VARIANCE", "WEIGHT", "RowWeights"]

VARIANCE, WEIGHT = "surefoot_variance", "surefoot_weight"
"""Names under which a row's variance, or its weight itself, travels with its reward."""


class RowWeights:
    """Weights w = s̃²/s̄², with s̄² the mean variance of the first batch if it isn't given.

    The first batch of a run is drawn by the reference policy, so that E_π₀[w] = 1 before the bounds (docs/method.md
    7.2). After it s̄² is fixed: a mean over each batch would change the objective.

    Args:
        objective: says whether rows are weighted, and the bounds.
        reference_variance: s̄², in reward²; None takes it from the first batch.
    """

    def __init__(self, objective: Objective, reference_variance: float | None = None) -> None:
        self.objective, self.reference_variance = objective, reference_variance

    def __call__(
        self, names: Sequence[str], rows: Sequence[Mapping[str, Any]], real: Sequence[bool]
    ) -> Float[Tensor, "batch"]:
        """(batch,) weights, float32.

        A row's own `surefoot_weight` is taken as it is; a row of an objective without weights has 1.

        Args:
            names: of the rows, for messages.
            rows: what came with each reward.
            real: False for rows that fill up the batch, which don't count in s̄².

        Raises:
            DataError: a row has neither a weight nor a variance, or one out of range. VarianceError: the first batch's
                mean variance isn't positive.
        """
        if self.objective.weights == "none":
            return torch.ones(len(rows))
        for name, row in zip(names, rows, strict=True):
            _check(name, row)
        variance = torch.tensor([float(row.get(VARIANCE, math.nan)) for row in rows], dtype=torch.float64)
        own = torch.tensor([float(row.get(WEIGHT, math.nan)) for row in rows], dtype=torch.float64)
        if bool(own.isnan().any()):
            if self.reference_variance is None:
                self.reference_variance = float(variance[torch.tensor(real)].nanmean())
            bounds = self.objective.weight_floor, self.objective.weight_ceiling
            own = torch.where(own.isnan(), weights(variance, self.reference_variance, *bounds), own)
        return own.float()


def _check(name: str, row: Mapping[str, Any]) -> None:
    if WEIGHT in row:
        if not 0 < float(row[WEIGHT]) < math.inf:
            raise DataError(f"row {name} came with {WEIGHT}: {row[WEIGHT]}; it must be positive and finite")
    elif not 0 <= float(row.get(VARIANCE, math.nan)) < math.inf:
        raise DataError(
            f"row {name} came with {VARIANCE}: {row.get(VARIANCE)}; the reward must hold a variance, or a {WEIGHT}"
        )
