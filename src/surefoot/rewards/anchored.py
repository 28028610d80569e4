"""Estimate rows whose anchors are of several kinds, as in data that a file of anchors covers in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.rewards.source import RewardSource
from surefoot.types import AnchorKind, Anchors, Calibration, RewardEstimate

__all__ = ["anchor_shares", "calibrate_anchored", "estimate_anchored", "merged_anchors"]


def estimate_anchored(
    source: RewardSource, scores: Float[Tensor, "batch columns"], choices: Sequence[Anchors]
) -> RewardEstimate:
    """Estimate each row with the first of several anchors that is known for it.

    Rows that have none of them fall back on the calibration set's, as in `RewardSource.estimate`. `anchor` of the
    estimate says which each row got. A source that isn't calibrated takes its constants from these rows.

    Args:
        scores: (batch, columns) of `RewardSource.score`.
        choices: the best first, each of all rows, NaN where unknown; none at all takes the calibration's for all.

    Raises:
        DataError: a row has no anchor, and the source isn't calibrated.
    """
    if not choices or not source.centred:
        return source.estimate(scores)
    taken = _first_known(source, choices)
    used = sorted(set(taken.tolist()))
    if len(used) <= 1:
        return source.estimate(scores, choices[used[0] if used else 0])
    held = source.calibration
    try:
        if held is None:
            _refuse_lonely(source, scores, choices)
            calibrate_anchored(source, scores, choices)
        parts = [(taken == i).nonzero()[:, 0] for i in used]
        estimates = [source.estimate(scores[p], _rows(choices[i], p)) for i, p in zip(used, parts, strict=True)]
    finally:
        source.calibration = held
    return _joined(estimates, torch.cat(parts).argsort())


def calibrate_anchored(
    source: RewardSource, scores: Float[Tensor, "batch columns"], choices: Sequence[Anchors]
) -> Calibration:
    """`RewardSource.calibrate` with the first of several anchors that is known for each row.

    Anchors of several kinds together count as one of the last kind.
    """
    if not choices or not source.centred:
        return source.calibrate(scores)
    return source.calibrate(scores, merged_anchors(source, choices))


def merged_anchors(source: RewardSource, choices: Sequence[Anchors]) -> Anchors:
    """The first of several anchors that is known for each row; of several kinds they count as the last kind's.

    Args:
        choices: at least one, the best first, each of all rows, NaN where unknown.
    """
    taken = _first_known(source, choices)
    merged = choices[-1]
    for i, choice in enumerate(choices):
        mine = taken == i
        if bool(mine.all()):
            return choice
        rows = torch.where(mine[:, None], choice.rows.to(merged.rows), merged.rows)
        merged = replace(merged, rows=rows, count=torch.where(mine, choice.count.to(merged.count), merged.count))
    return merged


def anchor_shares(kinds: Sequence[AnchorKind | None]) -> dict[str, float]:
    """Share of the rows that had each kind of anchor, for logs and records; rows without a variance don't count.

    >>> anchor_shares(["reference", "dataset", "reference", None, "reference"])
    {'dataset': 0.25, 'reference': 0.75}
    """
    known = [kind for kind in kinds if kind is not None]
    return {kind: known.count(kind) / len(known) for kind in sorted(set(known))}


def _first_known(source: RewardSource, choices: Sequence[Anchors]) -> Int[Tensor, "batch"]:
    """Index of the choice that each row takes; the last one where none is known."""
    taken = torch.full((len(choices[0]),), len(choices) - 1)
    for i in reversed(range(len(choices) - 1)):
        taken = torch.where(source._unknown(choices[i]), taken, i)
    return taken


def _refuse_lonely(source: RewardSource, scores: Float[Tensor, "batch columns"], choices: Sequence[Anchors]) -> None:
    """Raise as `estimate` does for a row without an anchor, before the source is calibrated on the rows themselves."""
    unknown = torch.stack([source._unknown(choice) for choice in choices]).all(dim=0) & ~scores.isnan().all(dim=1)
    if bool(unknown.any()):
        some = unknown.nonzero()[:, 0]
        source.estimate(scores[some], _rows(choices[-1], some))


def _rows(anchors: Anchors, some: Int[Tensor, "some"]) -> Anchors:
    return replace(anchors, rows=anchors.rows[some], count=anchors.count[some])


def _joined(parts: Sequence[RewardEstimate], order: Int[Tensor, "batch"]) -> RewardEstimate:
    """Join estimates in a given order of rows; a field that one of them lacks is left out."""
    values: dict[str, Any] = {}
    for name in ("mean", "members", "epistemic", "degrees_of_freedom", "anchor"):
        columns = [getattr(part, name) for part in parts]
        values[name] = None if any(column is None for column in columns) else torch.cat(columns)[order]
    return RewardEstimate(**values)
