"""One model's reward with the variance of other members: what weighting does without what averaging does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.files import whole_directory, write_json
from surefoot.rewards.saved import SOURCE
from surefoot.rewards.source import MemberSource, RewardSource, load_source, save_calibration
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["BorrowedVariance"]


class BorrowedVariance(RewardSource):
    """The reward of one source and the variance of another, which need not be on one scale: weights are relative.

    Its columns are those of the two, side by side. `members` of an estimate is the one reward.

    Args:
        reward: gives the mean.
        variance: gives the variance; has at least two members, or another way to tell.
    """

    def __init__(self, reward: RewardSource, variance: RewardSource) -> None:
        self.reward, self.variance = reward, variance
        self.name = f"{reward.name}, with the variance of {variance.name}"
        self._width: int | None = None

    @property
    def calibration(self) -> Calibration | None:
        """That of the variance."""
        return self.variance.calibration

    @calibration.setter
    def calibration(self, value: Calibration | None) -> None:
        self.variance.calibration = value

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        first = self.reward.score(prompts, completions)
        self._width = first.shape[1]
        return torch.cat([first, self.variance.score(prompts, completions)], dim=1)

    def estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None) -> RewardEstimate:
        (mine, theirs), (ours, others) = self._split(scores), self._split_anchors(anchors)
        mean = self.reward.estimate(mine, ours).mean
        known = self.variance.estimate(theirs, others)
        return replace(known, mean=mean, members=mean[:, None])

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        return self.estimate(scores, anchors)

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        (a, others), (b, more) = self._split(chosen), self._split(rejected)
        mean = self.reward.estimate(a).mean - self.reward.estimate(b).mean
        return replace(self.variance.margins(others, more), mean=mean, members=None)

    def calibrate(
        self,
        scores: Float[Tensor, "batch columns"],
        anchors: Anchors | None = None,
        *,
        variance_needed: bool = True,
    ) -> Calibration:
        (mine, theirs), (ours, others) = self._split(scores), self._split_anchors(anchors)
        self.reward.calibrate(mine, ours, variance_needed=variance_needed)
        return self.variance.calibrate(theirs, others, variance_needed=variance_needed)

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        return self.calibrate(scores, anchors)

    def _split_anchors(self, anchors: Anchors | None) -> tuple[Anchors | None, Anchors | None]:
        if anchors is None:
            return None, None
        width = self._split(anchors.rows)[0].shape[1]
        return anchors.columns(0, width), anchors.columns(width)

    def _split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        if self._width is None:  # rows of another process, or of a cache
            self._width = _columns(self.reward)
        return scores[:, : self._width], scores[:, self._width :]

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.reward.save(folder / "reward")
            self.variance.save(folder / "variance")
            for name, source in (("reward", self.reward), ("variance", self.variance)):
                save_calibration(folder / name, source.calibration)
            write_json(folder / SOURCE, {"kind": "borrowed", "name": self.name})

    @classmethod
    def load(cls, directory: str | Path, device: Any = None) -> BorrowedVariance:
        folder = Path(directory)
        return cls(load_source(folder / "reward", device), load_source(folder / "variance", device))


def _columns(source: RewardSource) -> int:
    """Columns of a source's rows; scores a text only where the source can't tell, since asking a judge costs money."""
    if isinstance(source, MemberSource):
        return source.num_members
    return getattr(source, "num_columns", None) or source.score(["a"], ["b"]).shape[1]
