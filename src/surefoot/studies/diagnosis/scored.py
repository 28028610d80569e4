"""Score everything that a diagnosis needs, once: rows are kept in parts, by the content of weights and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.data.comparisons import Comparisons
from surefoot.data.far_texts import far_texts
from surefoot.errors import naming_rows
from surefoot.files import fingerprint, whole_directory
from surefoot.rewards.features import weights_hash
from surefoot.rewards.independent import IndependentMembers
from surefoot.rewards.source import CALIBRATION, DIAGNOSIS, RewardSource
from surefoot.types import Text

__all__ = ["ScoredComparisons", "score_comparisons", "score_texts", "source_hash"]

Progress = Callable[[int, int], None]
"""Called with (texts scored, texts)."""

_PART = 1024
"""Texts in a part: what an interruption can lose."""


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


def score_texts(
    source: RewardSource,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    names: Sequence[str] | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Float[Tensor, "rows columns"]:
    """`source.score` in parts that are kept in `cache`, each under the hash of its texts.

    Args:
        names: of the rows, for errors; their numbers if None.
    """
    named = names or [f"row {row}" for row in range(len(prompts))]
    parts = []
    for start in range(0, len(prompts), _PART):
        some = list(prompts[start : start + _PART]), list(completions[start : start + _PART])
        place = None if cache is None else cache / fingerprint(some)
        if place is not None and place.exists():
            part = load_file(place / "rows.safetensors")["rows"]
        else:
            with naming_rows(lambda row, start=start: named[start + row]):  # type: ignore[misc]
                part = source.score(*some)
            if place is not None:
                with whole_directory(place) as folder:
                    save_file({"rows": part.contiguous()}, folder / "rows.safetensors")
        parts.append(part)
        if on_progress is not None:
            on_progress(min(start + _PART, len(prompts)), len(prompts))
    return torch.cat(parts)


def source_hash(source: RewardSource, directory: str | Path | None) -> str | None:
    """Sixteen hex digits of what the source's scores depend on; None where that can't be told.

    Args:
        directory: where the source was loaded from, if it was: the content of its files is hashed, but for what is
            fitted or found afterwards (calibration, diagnosis).
    """
    if directory is not None and Path(directory).is_dir():
        digest = hashlib.sha256()
        for path in sorted(Path(directory).rglob("*")):
            if path.suffix not in (".safetensors", ".json", ".txt", ".model", ".jinja") or not path.is_file():
                continue
            if path.name in (CALIBRATION, DIAGNOSIS) or "scores" in path.relative_to(directory).parts:
                continue
            digest.update(f"{path.relative_to(directory)}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
    if isinstance(source, IndependentMembers):
        held = [[weights_hash(one.model), one.encoder.max_length] for one in source.members]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]
    return None
