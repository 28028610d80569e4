"""Keep the keys of the pairs that a source was trained on and measured on, beside the source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import save_file

from surefoot.data.pair_keys import pair_keys
from surefoot.errors import ModelError
from surefoot.files import whole_file
from surefoot.rewards.saved import PAIRS, read_tensors

__all__ = ["TrainingPairs"]


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
        held = read_tensors(path)
        if set(held) != {"train", "held_out"} or any(t.dtype != torch.int64 or t.ndim != 1 for t in held.values()):
            raise ModelError(f"{path} must hold the keys of the pairs, train and held_out; delete it if in doubt")
        return cls(held["train"].numpy(), held["held_out"].numpy())
