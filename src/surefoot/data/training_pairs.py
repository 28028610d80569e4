"""Recognise the pairs that a source was trained on by their texts, whatever file, layout or order they come in."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from surefoot.data.messages import plain_text
from surefoot.errors import ModelError
from surefoot.files import whole_file
from surefoot.types import Text

__all__ = ["PAIRS", "TrainingPairs", "pair_keys"]

PAIRS = "pairs.safetensors"
"""Their file, beside a source."""


def pair_keys(prompts: Iterable[Text], chosen: Iterable[Text], rejected: Iterable[Text]) -> NDArray[np.int64]:
    """Hash each pair to 64 bits: (pairs,), equal for equal pairs.

    Roles, Unicode composition and white space are ignored, and so is which side was chosen: a pair with the other
    label is the same pair. Two different pairs of a million share a key with a probability of about 3e-8.

    >>> one, other = pair_keys(["why?"] * 2, ["a b", "c"], ["c", "a  b"])
    >>> bool(one == other)
    True
    """
    rows = zip(prompts, chosen, rejected, strict=True)
    return np.array([_key(*(_normal(text) for text in row)) for row in rows], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """Keys (`surefoot.data.pair_keys`) of the pairs of `surefoot reward`.

    The file holds eight bytes for each pair and no text. `push_to_hub` doesn't upload it, since whoever has a text
    could ask it whether the text is among them.

    Args:
        train: (pairs,) given to train on. held_out: (pairs,) that the source was measured and calibrated on.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @classmethod
    def of(cls, train: Dataset, held_out: Dataset) -> TrainingPairs:
        """The keys of two tables with `prompt`, `chosen` and `rejected`."""
        return cls(*(pair_keys(part["prompt"], part["chosen"], part["rejected"]) for part in (train, held_out)))

    def save(self, folder: str | Path) -> Path:
        """Write `pairs.safetensors` beside a source, whole or not at all."""
        with whole_file(Path(folder) / PAIRS) as temporary:
            save_file({name: torch.from_numpy(getattr(self, name)) for name in ("train", "held_out")}, temporary)
        return Path(folder) / PAIRS

    @classmethod
    def load(cls, folder: str | Path) -> TrainingPairs | None:
        """Read what `save` wrote; None where there is no such file, as beside sources of earlier versions.

        Raises:
            ModelError: the file is broken.
        """
        path = Path(folder) / PAIRS
        if not path.exists():
            return None
        try:
            held = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"can't read {path}: {error}") from None
        if set(held) != {"train", "held_out"} or any(t.dtype != torch.int64 or t.ndim != 1 for t in held.values()):
            raise ModelError(f"{path} must hold the keys of the pairs, train and held_out; delete it if in doubt")
        return cls(held["train"].numpy(), held["held_out"].numpy())


def _key(prompt: str, one: str, other: str) -> int:
    text = "\0".join([prompt, *sorted((one, other))])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big", signed=True)


def _normal(text: Text) -> str:
    return " ".join(unicodedata.normalize("NFC", plain_text(text)).split())
