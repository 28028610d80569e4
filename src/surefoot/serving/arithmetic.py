"""A source's arithmetic on scored rows, as payloads: for clients that have the rows and not the source's posterior."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError
from surefoot.rewards.source import RewardSource
from surefoot.types import AnchorKind, Anchors

__all__ = ["estimate_payload", "from_plain", "margins_payload", "to_plain"]


def estimate_payload(source: RewardSource, payload: Any) -> dict[str, Any]:
    """`RewardSource.estimate` of `scores`, rows as the server gave them, with one of `anchors` each.

    Args:
        payload: {"scores": rows, "anchors": {"rows", "count", "kind", "holds_own"} or null}; null in a row is NaN, and
            in `count` infinity.

    Returns:
        `mean` and `variance`, null where unknown; `variance` is null for a source that has none.

    Raises:
        DataError: it can't be read, the shapes disagree, or an anchor is missing.
    """
    scores, held = from_plain(payload, "scores"), payload.get("anchors")
    anchors = None if held is None else _anchors(held)
    estimate = source.estimate(scores, anchors)
    return {
        "mean": to_plain(estimate.mean),
        "variance": to_plain(estimate.variance) if estimate.has_variance else None,
    }


def margins_payload(source: RewardSource, payload: Any) -> dict[str, Any]:
    """`RewardSource.margins` of rows `chosen` and `rejected`: `mean` and `variance` of each pair.

    Raises:
        DataError: it can't be read, or the shapes disagree.
    """
    margins = source.margins(from_plain(payload, "chosen"), from_plain(payload, "rejected"))
    return {"mean": to_plain(margins.mean), "variance": to_plain(margins.variance)}


def from_plain(payload: Any, name: str, missing: float = math.nan) -> Float[Tensor, "..."]:
    """Float64 tensor of a field of plain numbers, with `missing` for null.

    Raises:
        DataError: it isn't one of numbers in equal rows.
    """
    values = payload.get(name) if isinstance(payload, dict) else None
    if not isinstance(values, list):
        raise DataError(f"{name} must be a list of numbers or of rows of numbers")
    try:
        filled = [
            [missing if x is None else x for x in row] if isinstance(row, list) else missing if row is None else row
            for row in values
        ]
        return torch.tensor(filled, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{name} must hold numbers, in rows of one length: {error}") from None


def to_plain(values: Float[Tensor, "..."]) -> list[Any]:
    """Plain numbers, None where they aren't finite."""
    return [
        to_plain(row) if row.ndim else (float(row) if bool(torch.isfinite(row)) else None) for row in values.double()
    ]


def _anchors(held: Any) -> Anchors:
    if not isinstance(held, dict):
        raise DataError("anchors must be an object of rows, count and kind, or null")
    rows, kind = from_plain(held, "rows"), cast("AnchorKind", held.get("kind"))  # Anchors refuses another
    return Anchors(rows, kind, from_plain(held, "count", math.inf), bool(held.get("holds_own", False)))
