"""Say which of the pairs of a diagnosis the source was trained on, and choose the ones that it held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.data.comparisons import Comparisons
from surefoot.data.training_pairs import TrainingPairs, pair_keys
from surefoot.errors import DataError

__all__ = ["DataSeen", "keep_held_out", "look_up"]


@dataclass(frozen=True, slots=True)
class DataSeen:
    """How many pairs the source has seen before; counts are None where its training pairs aren't recorded.

    Args:
        pairs: of the diagnosis.
        training: of them, pairs that the source was given to train on.
        held_out: of them, others on which `surefoot reward` measured and calibrated it.
        recorded_training, recorded_held_out: how many there were of each.
        left_out: pairs of the dataset that aren't in the diagnosis, since only the held-out ones were taken.
    """

    pairs: int
    training: int | None
    held_out: int | None
    recorded_training: int | None
    recorded_held_out: int | None
    left_out: int = 0

    @property
    def same_as_card(self) -> bool | None:
        """Whether these are the pairs of the source's card, all of them and no other; None if that is unknown."""
        if self.held_out is None:
            return None
        return self.training == 0 and self.held_out == self.pairs == self.recorded_held_out

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with what they mean in `lines` and the alarm in `warning` (None: there is none)."""
        return asdict(self) | {"same_as_card": self.same_as_card, "warning": self._warning(), "lines": self._lines()}

    def _warning(self) -> str | None:
        if not self.training:
            return None
        return (
            f"The source was trained on {self.training} of these {self.pairs} pairs "
            f"({100 * self.training / self.pairs:.0f}%). Figures on training pairs are usually better than on new "
            "ones, so accuracy, calibration and the verdict here can't be relied on. Leave out dataset and split to "
            "take the pairs that the source held out, or give others."
        )

    def _lines(self) -> list[str]:
        if self.training is None:
            return [
                "Whether the source was trained on these pairs is unknown: its training pairs are not recorded. If it "
                "was, the figures are usually better than on new pairs."
            ]
        lines = [] if self.training else [self._on_new_pairs()]
        if self.held_out:
            kept = f"{self.held_out} of the pairs are among the {self.recorded_held_out}"
            lines.append(
                f"{f'These are the {self.pairs}' if self.same_as_card else kept} held-out pairs on which "
                "`surefoot reward` measured and calibrated the source."
            )
        if self.left_out:
            lines.append(
                f"{self.left_out} other pairs of the dataset are left out: no split was given, so that only the pairs "
                "that the source held out are taken."
            )
        return lines

    def _on_new_pairs(self) -> str:
        return (
            f"None of the {self.pairs} pairs is among the {self.recorded_training} that the source was given to train "
            "on. Pairs are compared by their texts. Reworded pairs, other completions of a training prompt, and pairs "
            "on which its base model was trained before can't be recognised."
        )


def look_up(comparisons: Comparisons, trained: TrainingPairs | None, left_out: int = 0) -> DataSeen:
    """Count the pairs that the source was trained on and that it held out.

    Args:
        trained: `RewardSource.training_pairs`. left_out: as in `DataSeen`.
    """
    keys = _keys(comparisons)
    if trained is None:
        return DataSeen(len(keys), None, None, None, None, left_out)
    training = np.isin(keys, trained.train)
    held_out = np.isin(keys, trained.held_out) & ~training
    counts = (int(training.sum()), int(held_out.sum()), len(trained.train), len(trained.held_out))
    return DataSeen(len(keys), *counts, left_out)


def keep_held_out(
    comparisons: Comparisons, trained: TrainingPairs | None, *, required: bool = False
) -> tuple[Comparisons, int]:
    """Keep the held-out pairs, if the data are those that the source was trained from; else all.

    They are, if they hold every held-out pair and a training pair.

    Args:
        required: take the held-out pairs in any case.

    Returns:
        The comparisons, and how many pairs were left out.

    Raises:
        DataError: the held-out pairs are required, and none is there.
    """
    if trained is None:
        return comparisons, 0
    keys = _keys(comparisons)
    complete = bool(np.isin(trained.held_out, keys).all()) and bool(np.isin(keys, trained.train).any())
    if not required and not (complete and len(trained.held_out)):
        return comparisons, 0
    _, _, items = comparisons.pairs()
    held_out = np.isin(keys, trained.held_out)
    kept = np.setdiff1d(items, items[~held_out])
    if not len(kept):
        raise DataError(
            f"{comparisons.name} holds none of the {len(trained.held_out)} pairs that the source held out; it has "
            "changed since, so give held-out preferences yourself (dataset)"
        )
    return _select(comparisons, kept), int((~np.isin(items, kept)).sum())


def _keys(comparisons: Comparisons) -> NDArray[np.int64]:
    """(pairs,) in the order of `Comparisons.pairs`."""
    chosen, rejected, _ = comparisons.pairs()
    return pair_keys(
        (comparisons.prompts[row] for row in chosen),
        (comparisons.completions[row] for row in chosen),
        (comparisons.completions[row] for row in rejected),
    )


def _select(comparisons: Comparisons, items: NDArray[np.int64]) -> Comparisons:
    rows = np.flatnonzero(np.isin(comparisons.items, items))
    return replace(
        comparisons,
        prompts=[comparisons.prompts[row] for row in rows],
        completions=[comparisons.completions[row] for row in rows],
        items=np.searchsorted(items, comparisons.items[rows]),
        correct=comparisons.correct[rows],
        subsets=[comparisons.subsets[item] for item in items],
        ids=[comparisons.ids[item] for item in items],
    )
