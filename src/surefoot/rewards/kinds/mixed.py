"""Several sources as the members of one: judges beside each other, or a judge beside reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, ModelError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import CALIBRATION, SOURCE, inner_folders, read_source, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.types import Anchors, MarginEstimate, RewardEstimate, Text

__all__ = ["MixedSources"]


@dataclass(slots=True)
class MixedConfig:
    """Settings of a mixed source."""

    other_models: tuple[str, ...] = field(default=(), metadata={"help": "Further sources."})


@register("mixed")
class MixedSources(MemberSource):
    """Every source is one member, by its mean reward: a judge by its mean rating, an ensemble by its members' mean.

    The variance is the sample variance over the sources after centring, so it holds what each source's own noise puts
    into its mean, and nothing is counted twice. Ratings and logits are on different scales: members are divided by
    their standard deviation on the calibration set (`scale_members`), and so nothing is estimated before `calibrate`.

    Args:
        sources: at least one.
        name: shown in logs; the sources' names if None.

    Raises:
        ModelError: no sources.
    """

    settings = MixedConfig
    made_from = "source"

    scale_members = True

    def __init__(self, sources: Sequence[RewardSource], name: str | None = None) -> None:
        if not sources:
            raise ModelError("a mixed source needs at least one source")
        self.sources = list(sources)
        self.name = name or " + ".join(source.name for source in sources)

    @property
    def num_members(self) -> int:
        return len(self.sources)

    @property
    def max_pairs(self) -> int | None:
        """Held-out pairs that `surefoot reward` measures it on: the fewest that any source allows."""
        limits = [limit for limit in (getattr(source, "max_pairs", None) for source in self.sources) if limit]
        return min(limits, default=None)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """One column for each source; NaN where that source left the completion unscored."""
        columns = [source.reward_of(source.score(prompts, completions)) for source in self.sources]
        return torch.stack(columns, dim=1).float()

    def estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None) -> RewardEstimate:
        self._need_scales()
        return super().estimate(scores, anchors)

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        self._need_scales()
        return super().margins(chosen, rejected)

    def _need_scales(self) -> None:
        if self.scale_members and self.num_members > 1 and self.calibration is None:
            raise DataError(
                f"'{self.name}' mixes sources of different scales; calibrate it first, or set scale_members to False"
            )

    def save(self, directory: str | Path) -> None:
        """Each source in a directory of its own."""
        names = [f"source-{k}" for k in range(len(self.sources))]
        with whole_directory(directory) as folder:
            for name, source in zip(names, self.sources, strict=True):
                source.save(folder / name)
            values = {"kind": "mixed", "name": self.name, "sources": names, "scale_members": self.scale_members}
            write_json(folder / SOURCE, values)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return cls([load_source(name) for name in (job.model, *job.settings.other_models)])

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> MixedSources:
        folder = Path(directory)
        values = read_source(folder)
        source = cls(
            [load_source(inner, device) for inner in inner_folders(folder, values["sources"], "sources")],
            values["name"],
        )
        if not (folder / CALIBRATION).exists():
            source.scale_members = bool(values["scale_members"])
        return source
