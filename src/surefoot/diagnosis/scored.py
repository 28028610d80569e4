"""Score everything that a diagnosis needs; scores are cached by the content of weights and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis.out_of_distribution import far_texts
from surefoot.rewards.score_cache import Progress, score_texts
from surefoot.rewards.source import RewardSource
from surefoot.types import Text

__all__ = ["ScoredComparisons", "score_comparisons"]


@dataclass(frozen=True, eq=False)
class ScoredComparisons:
    """Raw rows of a source, as `RewardSource.score` gave them.

    Args:
        rows: (rows, columns) of the comparisons' completions.
        far_rows: (far,) the rows whose completions the far texts were made of: right ones only.
        far: (far, columns) by kind of far text.
    """

    rows: Float[Tensor, "rows columns"]
    far_rows: NDArray[np.int64]
    far: dict[str, Float[Tensor, "far columns"]]


def score_comparisons(
    source: RewardSource,
    comparisons: Comparisons,
    *,
    far_items: int = 500,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> ScoredComparisons:
    """Score the completions, and far texts made of the first right completion of up to `far_items` items.

    Args:
        far_items: 0 leaves far texts out; so do fewer than two items.
        seed: of the choice of items and of the far texts.
        cache: directory of parts, made for this source and no other (`source_hash`); finished parts are not scored
            again. None keeps nothing.
    """
    right = np.flatnonzero(comparisons.correct)
    firsts = right[np.unique(comparisons.items[right], return_index=True)[1]]
    some = np.random.default_rng(seed).permutation(len(firsts))[:far_items]
    far_rows = firsts[np.sort(some)]
    prompts, completions = list(comparisons.prompts), list(comparisons.completions)
    kinds: dict[str, list[Text]] = {}
    if len(far_rows) > 1:
        kinds = far_texts([completions[row] for row in far_rows], seed)
    for texts in kinds.values():
        prompts += [comparisons.prompts[row] for row in far_rows]
        completions += texts
    items = [*comparisons.items, *np.tile(comparisons.items[far_rows], len(kinds))]
    names = [f"{comparisons.name}: item {comparisons.ids[item]}" for item in items]
    rows = score_texts(source, prompts, completions, names=names, cache=cache, on_progress=on_progress)
    count, size = len(comparisons.prompts), len(far_rows)
    far = {kind: rows[count + i * size : count + (i + 1) * size] for i, kind in enumerate(kinds)}
    return ScoredComparisons(rows[:count], far_rows, far)
