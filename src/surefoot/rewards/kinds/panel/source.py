"""A panel of LLM judges as a reward source: what families of models don't agree on is its variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.files import whole_directory, write_json
from surefoot.maths import ensemble
from surefoot.rewards.kinds.judge.estimate import Readings, exact_row
from surefoot.rewards.kinds.judge.estimate import components as components_of_judge
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.panel.config import PanelConfig
from surefoot.rewards.kinds.panel.estimate import Components, Judged, components, membership, voices
from surefoot.rewards.kinds.panel.reliability import weigh
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import SOURCE, inner_folders, read_source, save_calibration
from surefoot.rewards.source import FitJob, RewardSource
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["PanelSource"]

_LEAST_SIGNAL = 0.1
"""Where a judge's noise explains more than the rest of its variance, its scale keeps this share of the variance."""


@register("panel")
class PanelSource(RewardSource):
    """Judges of different model families, each centred by its own anchor and divided by its own scale.

    Columns of a scored row are the judges' own, one judge after the other. `panel.estimate` says what is made of them,
    `panel.reliability` where the weights come from. A judge's scale is its standard deviation about the anchor on the
    calibration set, with its noise taken out. A row that fewer than two families scored is unscored: its variance is
    unknown, and a reward without one would escape the penalty.

    The members of an estimate are the judges; their weighted mean, not their plain one, is the reward.

    Args:
        judges: at least two, of two families at least.
        families: one name for each judge, equal for judges whose errors are shared; if None, the name of its model.
        name: shown in logs; the judges' names if None.
        variance: "raw", or "moderated".

    Raises:
        ModelError: one of them is no judge. ConfigError: fewer than two families, or not one for each judge.
    """

    settings = PanelConfig
    made_from = "source"
    loading_example = (
        "from surefoot.rewards.kinds.judge.access import JudgeAccess",
        ', judge={"MODEL": JudgeAccess(endpoint="https://…/v1", key_variable="…"), …}',
    )

    def __init__(
        self,
        judges: Sequence[RewardSource],
        families: Sequence[str] | None = None,
        name: str | None = None,
        *,
        variance: ensemble.VarianceKind = "raw",
    ) -> None:
        self.judges: list[JudgeSource] = []
        for judge in judges:
            if not isinstance(judge, JudgeSource):
                raise ModelError(
                    f"a panel is made of judges, and '{judge.name}' is of kind {judge.kind or type(judge).__name__}; "
                    "kind: mixed takes any sources"
                )
            self.judges.append(judge)
        self.families = tuple(families or (judge.model for judge in self.judges))
        if len(self.families) != len(self.judges):
            raise ConfigError(
                f"families must name one for each judge: {len(self.judges)} judges, {len(self.families)} families"
            )
        if len(set(self.families)) < 2:
            raise ConfigError(
                f"a panel needs judges of at least two families, got {self.families[0] if self.families else 'none'}; "
                "wordings and replies of one model share its bias"
            )
        self.variance_kind = variance
        self.name = name or " + ".join(judge.name for judge in self.judges)
        self.family_members = membership(self.families)
        """(families, judges) 1 where a judge is of the family."""

    @property
    def num_members(self) -> int:
        """How many judges."""
        return len(self.judges)

    @property
    def num_columns(self) -> int:
        return sum(judge.num_columns for judge in self.judges)

    @property
    def description(self) -> str:
        return f"a panel of {len(self.judges)} LLM judges of {len(set(self.families))} families"

    @property
    def max_pairs(self) -> int:
        """Held-out pairs that `surefoot reward` measures it on: the fewest that any judge allows."""
        return min(judge.max_pairs for judge in self.judges)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Ask every judge; `JudgeSource.score` says what it warns of and raises."""
        return torch.cat([judge.score(prompts, completions) for judge in self.judges], dim=1)

    def reward_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
        """Weighted mean rating in the scaled unit; where a judge is missing, the others stand in about its offset."""
        x = self._checked(scores)
        offsets = torch.stack([row[0] for row in self._own_anchors()])
        ratings = torch.stack([x[:, part][:, 0] for part in self._parts], dim=1)
        judged = Judged(ratings - offsets, torch.full_like(ratings, torch.nan), offsets.expand_as(ratings))
        judged = judged.scaled(self._scales)
        return components(judged, self.family_members, self._weights).mean + self._level(judged)

    def members_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch judges"]:
        """Each judge's mean rating, divided by its scale once calibrated."""
        x = self._checked(scores)
        ratings = torch.stack([x[:, part][:, 0] for part in self._parts], dim=1)
        return ratings if self.calibration is None else ratings / self._scales

    def report(self, scores: Float[Tensor, "batch columns"], anchors: Anchors) -> dict[str, float | None]:
        """Replies and those with a rating, so far in this process; raw mean variances of these rows, None if unknown.

        Args:
            scores: rows as `score` gave them.
            anchors: one for each row.
        """
        means = self.variance_parts(scores, anchors)
        return {
            "replies": sum(judge.heard.replies for judge in self.judges),
            "replies_read": sum(judge.heard.read for judge in self.judges),
            **{f"variance_{name}": None if math.isnan(value) else value for name, value in means.items()},
        }

    def variance_parts(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> dict[str, float]:
        """Mean variance between families and within them (`components`), NaN where unknown.

        Over the calibration set they are in the calibration's notes, as `variance_between_families` and so on.
        """
        return _means(self.components(scores, anchors))

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def judged(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None) -> Judged:
        """The judges' centred and scaled rewards, with their noise.

        Args:
            scores: rows as `score` gave them.
            anchors: one for each row; where a judge's is unknown, or None, its mean over the calibration set.

        Raises:
            DataError: the panel isn't calibrated; or the shapes disagree.
        """
        x = self._checked(scores)
        return self._judged(x, self._complete(x, anchors)).scaled(self._scales)

    def components(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None) -> Components:
        """Reward, variance between families and within them; raw and unbiased.

        Args:
            scores, anchors: as in `judged`.
        """
        return components(self.judged(scores, anchors), self.family_members, self._weights)

    def reliabilities(self) -> dict[str, list[float]]:
        """`weight` and `reliability` of each judge, from the calibration; NaN where it is unknown."""
        notes = self._fitted.notes
        count = range(len(self.judges))
        return {kind: [notes.get(f"judge_{j}_{kind}", math.nan) for j in count] for kind in ("weight", "reliability")}

    @property
    def scales(self) -> list[float]:
        """Each judge's standard deviation within prompts on the calibration set, noise taken out, in its ratings."""
        return [float(scale) for scale in self._scales]

    @property
    def offsets(self) -> list[float]:
        """Each judge's mean rating on the calibration set."""
        return [float(row[0]) for row in self._own_anchors()]

    def _judged(self, x: Float[Tensor, "batch columns"], anchors: Anchors) -> Judged:
        """In the judges' own units; every anchor is known, or stands in the calibration."""
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for judge, part, own in zip(self.judges, self._parts, self._own_anchors(), strict=True):
            unknown = judge._unknown(replace(anchors, rows=anchors.rows[:, part]))
            beside = replace(
                anchors,
                rows=torch.where(unknown[:, None], own, anchors.rows[:, part]),
                count=torch.where(unknown, torch.inf, anchors.count),
            )
            parts = components_of_judge(Readings.of(x[:, part], judge.num_wordings), beside)
            level = Readings.of(beside.rows, judge.num_wordings).means.nanmean(dim=1)
            columns.append((parts.wordings.nanmean(dim=1) - level, parts.mean, level))
        return Judged(*(torch.stack(values, dim=1) for values in zip(*columns, strict=True)))

    def _level(self, judged: Judged) -> Float[Tensor, "batch"]:
        """The anchors' weighted mean over all judges: an offset of the prompt, also where a judge left a row out."""
        return judged.anchors @ torch.tensor(self.reliabilities()["weight"], dtype=torch.float64)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        assert anchors is not None
        judged = self._judged(scores, anchors).scaled(self._scales)
        prior = self._fitted.prior if self.variance_kind == "moderated" else None
        found, level = components(judged, self.family_members, self._weights, prior), self._level(judged)
        # A reward without a variance would escape the penalty: such a row is unscored, whatever its judge said.
        members = torch.where(found.mean.isnan()[:, None], torch.nan, judged.rewards + level[:, None])
        return RewardEstimate(
            mean=found.mean + level,
            members=members,
            epistemic=found.variance,
            degrees_of_freedom=found.freedom.clamp(min=0),
        )

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins judge by judge: a reward that is centred by the other side, an anchor of one completion."""
        gone = torch.stack([rejected[:, part].isnan().all(dim=1) for part in self._parts], dim=1)
        other = Anchors(rejected, "dataset", rejected.new_ones(len(rejected)))
        judged = self._judged(chosen, other).scaled(self._scales)
        judged = replace(judged, rewards=judged.rewards.masked_fill(gone, torch.nan))
        found = components(judged, self.family_members, self._weights)
        return MarginEstimate(found.mean, found.variance, judged.rewards)

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        self.calibration = fitted = self._with_offsets(scores)  # for rows and judges without an anchor
        judged = self._judged(scores, self._complete(scores, anchors))
        scales = _scales_of(judged, [judge.name for judge in self.judges])
        scaled = judged.scaled(scales)
        whole = scaled.rewards[~scaled.rewards.isnan().any(dim=1)]
        if len(whole) < 3:
            raise DataError(
                f"calibrating '{self.name}' needs at least three completions that all judges scored, got {len(whole)}"
            )
        found = weigh(torch.cov(whole.T), self.family_members)
        per_judge = found.weights @ (self.family_members / self.family_members.sum(dim=1, keepdim=True))
        notes = {f"judge_{j}_weight": float(weight) for j, weight in enumerate(per_judge)}
        known = {f"judge_{j}_reliability": float(value) for j, value in enumerate(found.judges)}
        notes |= {name: value for name, value in known.items() if not math.isnan(value)}
        spread = components(scaled, self.family_members, found.weights)
        notes |= {f"variance_{name}": value for name, value in _means(spread).items() if not math.isnan(value)}
        wordings = torch.tensor([judge.num_wordings for judge in self.judges])
        return replace(
            fitted,
            scales=tuple(scales.repeat_interleave(wordings).tolist()),
            prior=ensemble.fit_prior(spread.spread, spread.freedom.clamp(min=0)),
            notes=notes,
        )

    def _with_offsets(self, scores: Float[Tensor, "batch columns"]) -> Calibration:
        """A calibration of the wordings' means over these rows, all scales 1."""
        offsets: list[float] = []
        for judge, part in zip(self.judges, self._parts, strict=True):
            means = Readings.of(scores[:, part], judge.num_wordings).means.nanmean(dim=0)
            if bool(means.isnan().any()):
                wording = int(means.isnan().nonzero()[0])
                raise DataError(
                    f"wording {wording} of '{judge.name}' rated none of the {len(scores)} calibration rows"
                )
            offsets += means.tolist()
        ones = (1.0,) * len(offsets)
        return Calibration(tuple(offsets), ones, None, None, len(scores), variance_kind=self.variance_kind)

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        """Reliability of the variance between families; None for fewer than four."""
        said, _ = voices(self.judged(scores, anchors), self.family_members)
        value = ensemble.reliability(said)
        return None if math.isnan(value) else value

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return None if self.calibration is None else torch.cat(self._own_anchors())

    def _own_anchors(self) -> list[Tensor]:
        """Each judge's anchor row of its wordings' means over the calibration set, taken as free of noise."""
        counts = [judge.num_wordings for judge in self.judges]
        means = torch.tensor(self._fitted.offsets, dtype=torch.float64).split(counts)
        return [exact_row(some) for some in means]

    def _unknown(self, anchors: Anchors) -> "torch.Tensor":
        parts = zip(self.judges, self._parts, strict=True)
        return torch.stack([j._unknown(replace(anchors, rows=anchors.rows[:, part])) for j, part in parts]).all(dim=0)

    @property
    def _parts(self) -> list[slice]:
        """The columns of each judge."""
        ends = torch.tensor([0, *(judge.num_columns for judge in self.judges)]).cumsum(dim=0).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]

    @property
    def _fitted(self) -> Calibration:
        if self.calibration is None:
            raise DataError(f"'{self.name}' holds judges of different scales; calibrate it first")
        count = sum(judge.num_wordings for judge in self.judges)
        if len(self.calibration.offsets) != count:
            raise DataError(
                f"the calibration of '{self.name}' is of {len(self.calibration.offsets)} wordings, but its judges "
                f"have {count}; calibrate it again"
            )
        return self.calibration

    @property
    def _scales(self) -> Float[Tensor, "judges"]:
        counts = [judge.num_wordings for judge in self.judges]
        return torch.stack([s[0] for s in torch.tensor(self._fitted.scales, dtype=torch.float64).split(counts)])

    @property
    def _weights(self) -> Float[Tensor, "families"]:
        return self.family_members @ torch.tensor(self.reliabilities()["weight"], dtype=torch.float64)

    # --- on disk ------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Each judge in a directory of its own."""
        names = [f"judge-{j}" for j in range(len(self.judges))]
        config = {"families": list(self.families), "variance": self.variance_kind}
        with whole_directory(directory) as folder:
            for name, judge in zip(names, self.judges, strict=True):
                judge.save(folder / name)
            values = {"kind": "panel", "name": self.name, "sources": names, "config": config}
            write_json(folder / SOURCE, values)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        judges = [load_source(name) for name in (job.model, *job.settings.other_models)]
        return cls(judges, job.settings.families or None, variance=job.settings.variance)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> PanelSource:
        """Read what `save` wrote; endpoints and keys come from the caller (`judge.access`). `device` is ignored."""
        folder = Path(directory)
        values = read_source(folder)
        judges = [load_source(inner) for inner in inner_folders(folder, values["sources"], "sources")]
        families, variance = values["config"]["families"], values["config"]["variance"]
        if not isinstance(families, list) or not all(isinstance(family, str) for family in families):
            raise ModelError(f"{folder / SOURCE}: families must be a list of names, got {families!r:.80}")
        if variance not in get_args(ensemble.VarianceKind):
            raise ModelError(f"{folder / SOURCE}: variance must be moderated or raw, got {variance!r:.80}")
        return cls(judges, families, values["name"], variance=variance)


def _means(parts: Components) -> dict[str, float]:
    return {
        "within_families": float(parts.within.nanmean()),
        "between_families": float(parts.between.nanmean()),
    }


def _scales_of(judged: Judged, names: Sequence[str]) -> Float[Tensor, "judges"]:
    """Standard deviations of the centred ratings, noise taken out where it is known.

    Where the calibration rows are their own anchor, all of them are too small by one factor, the same for all judges.

    Raises:
        DataError: a judge gives one constant rating, or rated fewer than two rows.
    """
    counts = (~judged.rewards.isnan()).sum(dim=0)
    deviations = judged.rewards - judged.rewards.nanmean(dim=0)
    total = deviations.square().nansum(dim=0) / (counts - 1)
    for name, variance in zip(names, total.tolist(), strict=True):
        if not variance > 0:
            raise DataError(f"'{name}' gives no two different ratings to completions of a prompt; it can't be scaled")
    noise = judged.noise.nanmean(dim=0).nan_to_num(0.0)
    return torch.maximum(total - noise, _LEAST_SIGNAL * total).sqrt()
