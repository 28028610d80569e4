"""Cache of scored rows by the content of the texts, so that none is scored twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.data.training_pairs import PAIRS
from surefoot.errors import naming_rows
from surefoot.files import fingerprint, whole_directory
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.saved import CALIBRATION, DIAGNOSIS
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.feature_cache import weights_hash
from surefoot.types import Text

__all__ = ["Progress", "kept", "score_texts", "source_hash"]

Progress = Callable[[int, int], None]
"""Function that is called with (texts scored, texts)."""

_PART = 1024
"""Number of texts in a part, which is what an interruption can lose."""


def score_texts(
    source: RewardSource,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    names: Sequence[str] | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> Float[Tensor, "rows columns"]:
    """Score texts in parts that are kept in `cache`, each under the hash of its texts.

    Args:
        names: of the rows, for errors; their numbers if None.
    """
    named = names or [f"row {row}" for row in range(len(prompts))]
    parts = []
    for start in range(0, len(prompts), _PART):
        some = list(prompts[start : start + _PART]), list(completions[start : start + _PART])
        with naming_rows(lambda row, start=start: named[start + row]):  # type: ignore[misc]
            parts.append(kept(cache, some, partial(_score, source, *some))["rows"])
        if on_progress is not None:
            on_progress(min(start + _PART, len(prompts)), len(prompts))
    return torch.cat(parts)


def _score(source: RewardSource, *texts: list[Text]) -> dict[str, Tensor]:
    return {"rows": source.score(*texts)}


def kept(cache: Path | None, texts: Any, score: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `score` returns; if it was kept in `cache` under the hash of `texts`, it isn't called."""
    if cache is None:
        return score()
    place = cache / fingerprint(texts)
    if not place.exists():
        scored = {name: rows.contiguous() for name, rows in score().items()}
        with whole_directory(place) as folder:
            save_file(scored, folder / "rows.safetensors")
    return load_file(place / "rows.safetensors")


def source_hash(source: RewardSource, directory: str | Path | None) -> str | None:
    """Hash of everything that the source's scores depend on: sixteen hex digits, or None if it is unknown.

    Args:
        directory: where the source was loaded from, if it was: the content of its files is hashed, but for what is
            fitted or found afterwards (calibration, diagnosis) and the keys of the training pairs.
    """
    if directory is not None and Path(directory).is_dir():
        digest = hashlib.sha256()
        for path in sorted(Path(directory).rglob("*")):
            if path.suffix not in (".safetensors", ".json", ".txt", ".model", ".jinja") or not path.is_file():
                continue
            if path.name in (CALIBRATION, DIAGNOSIS, PAIRS) or "scores" in path.relative_to(directory).parts:
                continue
            digest.update(f"{path.relative_to(directory)}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
    if isinstance(source, IndependentMembers):
        held = [[weights_hash(member.model), member.encoder.max_length] for member in source.members]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]
    return None
