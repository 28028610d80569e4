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
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import SOURCE, save_calibration
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["BorrowedVariance"]


@register("borrowed_variance")
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

    @property
    def num_columns(self) -> int:
        return self.reward.num_columns + self.variance.num_columns

    @property
    def description(self) -> str:
        return f"the reward of {self.reward.description}, the variance of {self.variance.description}"

    @property
    def calibration(self) -> Calibration | None:
        """That of the variance."""
        return self.variance.calibration

    @calibration.setter
    def calibration(self, value: Calibration | None) -> None:
        self.variance.calibration = value

    @property
    def variance_factor(self) -> float:
        """That of the variance, which applies it itself."""
        return self.variance.variance_factor

    @variance_factor.setter
    def variance_factor(self, value: float) -> None:
        self.variance.variance_factor = value

    def reward_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
        return self.reward.reward_of(self._split(scores)[0])

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows = [source.score(prompts, completions) for source in (self.reward, self.variance)]
        return torch.cat(rows, dim=1)

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
        margin = self.variance.margins(self._split(chosen)[1], self._split(rejected)[1])
        return replace(margin, mean=self.reward_of(chosen) - self.reward_of(rejected), members=None)

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        return self.margins(chosen, rejected)

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
        width = self.reward.num_columns
        return anchors.columns(0, width), anchors.columns(width)

    def _split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = self._checked(scores), self.reward.num_columns
        return rows[:, :width], rows[:, width:]

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.reward.save(folder / "reward")
            self.variance.save(folder / "variance")
            for name, source in (("reward", self.reward), ("variance", self.variance)):
                save_calibration(folder / name, source.calibration)
            write_json(folder / SOURCE, {"kind": self.kind, "name": self.name})

    @classmethod
    def load(cls, directory: str | Path, device: Any = None) -> BorrowedVariance:
        folder = Path(directory)
        return cls(load_source(folder / "reward", device), load_source(folder / "variance", device))
