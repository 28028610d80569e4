"""Calibration of the reward source on the reference policy, and the anchors of the prompts, in a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset, IterableDataset

from surefoot.errors import ConfigError, VarianceError
from surefoot.maths.objectives import Objective
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.source import RewardSource
from surefoot.training import metrics
from surefoot.training.prompt_anchors import PromptAnchors
from surefoot.training.reference import ReferenceSampling
from surefoot.types import Anchors, Calibration

__all__ = ["ANCHORS", "AnchoredRewards"]

ANCHORS = "surefoot_anchors.safetensors"


class AnchoredRewards(ReferenceSampling):
    """Mixin for TRL's RLOO and GRPO trainers: what rewards are centred by, and what weights are relative to."""

    source: RewardSource
    objective: Objective
    anchors: PromptAnchors | None
    _clock: metrics.ShareOfTime

    def calibrate_on_reference(self) -> Calibration:
        """Sample the policy, which is still the reference, and fit the source's constants on the scored completions.

        Uses `calibration_prompts` prompts × `num_generations` completions over all processes. The random state of
        training is left as it was, so that objectives can be compared on the same samples.

        Raises:
            VarianceError: the objective needs a variance and the source has none.
        """
        rows, groups = self._calibration_rows()
        prompts = [row["prompt"] for row in rows]
        with self._same_random_state():
            completions = self._sample(prompts)
        scores = gather(self.source.score(prompts, completions).to(self.accelerator.device)).cpu()
        known = self._known_anchors(rows)
        everyone = gather(torch.tensor(groups, device=self.accelerator.device)).cpu()
        anchors = self._anchors_of_batch(known, scores, everyone)
        calibration = self.source.calibrate(scores, anchors, variance_needed=self.objective.needs_variance)
        if self.objective.needs_variance and calibration.reference_variance is None:
            raise VarianceError(
                f"preset '{self.args.preset}' needs a variance, but '{self.source.name}' has one member; give at "
                "least two members, or use preset='vanilla'"
            )
        if self.objective.weights == "variance":
            metrics.warn_if_even(self.source, calibration)
            metrics.warn_if_unreliable(self.source, calibration)
        return calibration

    def _calibration_rows(self) -> tuple[list[dict[str, Any]], list[int]]:
        size, count = self.args.num_generations, self.args.calibration_prompts
        dataset: Dataset | IterableDataset = self.train_dataset
        rows = list(dataset.take(count) if isinstance(dataset, IterableDataset) else _spread(dataset, count))
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        share = max(len(rows) // count, 1)  # gather needs the same number of rows everywhere
        mine = [(index + i * count) % len(rows) for i in range(share)]
        return [rows[i] for i in mine for _ in range(size)], [i for i in mine for _ in range(size)]

    def _new_anchors(self) -> PromptAnchors | None:
        """None where nothing is to be drawn.

        The objective compares no members, the source's variance needs no anchor, or no prompt has one of its own.

        Raises:
            ConfigError: there is no reference policy to draw from.
        """
        kind, path = self.args.anchor, self.args.anchor_file
        if not (self.objective.needs_anchor and self.source.centred) or kind in ("calibration", "group"):
            return None
        if getattr(self, "environment_factories", None):
            raise ConfigError(
                "an environment changes the prompts, which then have no fixed anchors; choose anchor: calibration"
            )
        if kind == "reference" and path is None:
            self._check_reference()
        with self._same_random_state():  # loading scores a few completions
            prepared = None if path is None else AnchorStore.load(path, self.source)
        store = AnchorStore(self.source.name, self.args.anchor_completions if kind == "reference" else 1)
        return PromptAnchors(
            self.source, store, self.accelerator, self._sample_reference, self.args.seed, kind, prepared
        )

    def _known_anchors(self, rows: list[dict[str, Any]]) -> Anchors | None:
        """The anchors of all processes' rows, given the local ones; drawn if they are new. All processes must ask."""
        if self.anchors is None:
            return None
        with self._clock, self._same_random_state():
            return self.anchors.of(rows)

    def _anchors_of_batch(self, known: Anchors | None, scores: torch.Tensor, groups: torch.Tensor) -> Anchors | None:
        """Where a prompt has no anchor of its own, rows are centred by the calibration set (None), or by their group.

        By their group as well where the objective reads no variance, which is then only logged.
        """
        if known is not None:
            return known
        if self.args.anchor == "calibration" and self.objective.needs_anchor:
            return None
        return group_anchors(scores, groups)

    def _restore_anchors(self, checkpoint: Path, kind: str) -> None:
        if self.objective.needs_anchor and kind != self.args.anchor:
            raise ConfigError(
                f"the run of {checkpoint} centred rewards by anchor: {kind}, and its weights are relative to that; "
                f"set anchor: {kind} to go on with it (it is {self.args.anchor})"
            )
        if self.anchors is not None:
            self.anchors.store = AnchorStore.load(checkpoint / ANCHORS, self.source)


def _spread(dataset: Dataset, count: int) -> Dataset:
    """`count` rows spread evenly over the dataset (all of it if it is shorter)."""
    if len(dataset) <= count:
        return dataset
    return dataset.select([round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)])
