"""Variances and weights of preference pairs, computed once and stored as columns, for weighted DPO."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from surefoot.errors import DataError, VarianceError, naming_rows
from surefoot.maths.objectives import weights
from surefoot.rewards.anchored import anchor_shares
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.score_cache import Progress, kept
from surefoot.rewards.score_dataset import ANCHOR, anchor_names, estimate_rows, prompt_blocks, prompt_numbers
from surefoot.rewards.source import RewardSource
from surefoot.types import ANCHOR_KINDS, Text

__all__ = ["VARIANCES", "WEIGHTS", "add_variances", "add_weights", "anchors_of"]

_SIDES = ("chosen", "rejected")
VARIANCES = ("chosen_variance", "rejected_variance")
"""Columns that `surefoot score` writes, in reward²."""
WEIGHTS = ("chosen_weight", "rejected_weight")
"""Columns that the trainer reads; their mean over all sides is 1 before floor and ceiling."""


def add_variances(
    pairs: Dataset,
    source: RewardSource,
    anchors: AnchorStore | None = None,
    *,
    rows: int = 64,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Dataset:
    """Add the variance of either side's reward, and `anchor`, as columns, as `surefoot score` does.

    Several processes score a share each, and all get the whole.

    Args:
        pairs: `prompt`, `chosen`, `rejected`.
        anchors: of `surefoot anchors`. A prompt that it lacks is centred by both sides of all its pairs; a pair
            without a prompt by its own two.
        rows: pairs scored at a time, which is what an interruption can lose.
        cache: directory of scored rows, made for this source and no other (`source_hash`); what is in it isn't scored
            again. None keeps nothing.
        on_progress: called with (pairs scored, pairs) of this process's share.

    Raises:
        VarianceError: the source has one member.
    """
    numbers = prompt_numbers(pairs["prompt"], pairs=True)
    state = PartialState()
    mine = list(prompt_blocks(numbers, rows))[state.process_index :: state.num_processes]
    found, done, total = [], 0, sum(map(len, mine))
    for block in mine:
        if on_progress is not None:
            on_progress(done, total)
        part = pairs[block]
        texts = part["prompt"], part["chosen"], part["rejected"]
        with naming_rows(lambda row, block=block: f"row {block[row]}"):  # type: ignore[misc]
            scored = kept(cache, texts, partial(_score, source, *texts))
        groups = torch.from_numpy(numbers[block]).repeat(2)
        both = torch.cat([scored[side] for side in _SIDES])
        estimate = estimate_rows(source, [*part["prompt"], *part["prompt"]], both, groups, anchors)
        found.append((block, estimate.variance.numpy(), anchor_names(estimate)))
        done += len(block)
    if on_progress is not None:
        on_progress(total, total)
    variances = {name: np.full(len(pairs), np.nan) for name in VARIANCES}
    kinds: list[str | None] = [None] * len(pairs)
    for block, variance, names in gather_object(found):
        for name, values in zip(VARIANCES, np.split(variance, 2), strict=True):
            variances[name][block] = values
        for row, kind in zip(block.tolist(), names[: len(block)], strict=True):
            kinds[row] = kind
    pairs = pairs.remove_columns([name for name in (*VARIANCES, ANCHOR) if name in pairs.column_names])
    for name, values in variances.items():
        pairs = pairs.add_column(name, values.tolist())
    return pairs.add_column(ANCHOR, kinds)


def _score(source: RewardSource, *texts: list[Text]) -> dict[str, Tensor]:
    return dict(zip(_SIDES, source.score_pairs(*texts), strict=True))


def anchors_of(pairs: Dataset) -> dict[str, float]:
    """Share of the pairs that had each kind of anchor, from their column `anchor`; empty where it is unknown."""
    kinds = list(pairs[ANCHOR]) if ANCHOR in pairs.column_names else []
    known = set(kinds) - {None} <= set(ANCHOR_KINDS)
    return anchor_shares(kinds) if known else {}


def add_weights(pairs: Dataset, floor: float = 0.1, ceiling: float = 10.0) -> Dataset:
    """Add the weights w = s²/s̄² of either side as columns, s̄² the mean over both sides of all pairs.

    Source: docs/method.md 7.5.

    Raises:
        DataError: a variance column is missing, or holds None, NaN, text or a negative number (the row is named).
        VarianceError: all variances are zero.
    """
    missing = [name for name in VARIANCES if name not in pairs.column_names]
    if missing:
        raise DataError(
            f"the pairs have no {' and no '.join(missing)}; add them with `surefoot score`, or give a reward source"
        )
    sides = []
    for name in VARIANCES:
        numbers = [v if isinstance(v, int | float) else float("nan") for v in pairs[name]]
        values = torch.tensor(numbers, dtype=torch.float64)
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise DataError(f"row {row} has no finite {name}; it could not be scored. Drop the row or score it again")
        if bool((values < 0).any()):
            raise DataError(f"row {int((values < 0).nonzero()[0])} has a negative {name}; score it again")
        sides.append(values)
    mean = float(torch.cat(sides).mean())
    if mean <= 0:
        raise VarianceError("every variance is zero: weighting has nothing to work with; use weights='none'")
    for name, values in zip(WEIGHTS, sides, strict=True):
        pairs = pairs.add_column(name, weights(values, mean, floor, ceiling).tolist())
    return pairs
