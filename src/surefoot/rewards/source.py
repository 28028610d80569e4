"""The interface of every reward source.

Scoring has two steps. `score` runs the models and gives plain numbers per row, which can be gathered over processes,
cached or stored; `estimate` is arithmetic on those numbers and on the prompts' anchors. A trainer gathers between the
two.

A kind implements `score`, `num_columns`, `_estimate`, `_margins`, `_constants`, `save` and `load`. The public
`estimate`, `margins` and `calibrate` are written once, here: they check the rows, find the anchors and apply the
variance factor. `surefoot.rewards.registry` says how a kind gets its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.data.training_pairs import TrainingPairs
from surefoot.errors import DataError, ModelError
from surefoot.maths import ensemble
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.types import ANCHOR_KINDS, Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["FitJob", "MemberSource", "RewardSource", "given_estimate", "plain_constants"]

MadeFrom = Literal["model", "reward model", "source", "served model"]
"""What `model_name_or_path` names for a kind: any model of the transformers library, one trained reward model, a saved
source, or a model behind an endpoint."""


@dataclass(frozen=True)
class FitJob:
    """What `surefoot reward` hands to a kind's `fit`.

    Args:
        pairs: checked preference pairs with `prompt`, `chosen`, `rejected`.
        model: `model_name_or_path`.
        settings: an instance of the kind's `settings`.
        work: a directory for checkpoints and cached features, from which a rerun goes on.
        target: where the source will be saved. A kind whose parts are large may write them there itself, `source.json`
            last; any other source is saved there afterwards.
        report: called with (what is being done, share done in [0, 1]).
    """

    pairs: Dataset
    model: str
    settings: Any
    work: Path
    target: Path
    report: Callable[[str, float], None]


class RewardSource(ABC):
    """Gives rewards with a variance.

    Attributes:
        kind: the name under which it is registered, saved and trained.
        settings: dataclass of what `surefoot reward` can set for this kind; None where there is nothing to set.
        made_from: what `model_name_or_path` names.
        loading_example: for the model card: (a further import, a further argument of `load_source`).
        name: shown in logs and tables.
        centred: whether the variance is taken of the anchored reward; False where it is given as it stands.
        calibration: constants fitted on a calibration set; None until `calibrate`.
        variance_factor: multiplies every variance; 1 until `fit_variance_factor`.
        diagnosis: what `surefoot diagnose` left beside the source, if it was loaded from there.
        training_pairs: which pairs `surefoot reward` trained it on and held out, if they are recorded beside it.
    """

    kind: ClassVar[str] = ""
    settings: ClassVar[type[Any] | None] = None
    made_from: ClassVar[MadeFrom] = "model"
    loading_example: ClassVar[tuple[str, str]] = ("", "")

    name: str
    centred: bool = True
    calibration: Calibration | None = None
    variance_factor: float = 1.0
    diagnosis: dict[str, Any] | None = None
    training_pairs: TrainingPairs | None = None

    @abstractmethod
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Run the models: one row per completion, float32 on the CPU, NaN where it couldn't be scored.

        The columns mean what `estimate` takes them to mean; for a `MemberSource` they are the members' raw scores.
        """

    def score_pairs(
        self, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text]
    ) -> tuple[Float[Tensor, "pairs columns"], Float[Tensor, "pairs columns"]]:
        """The rows of both sides of pairs, for a source that must see them together; others score side by side."""
        return self.score(prompts, chosen), self.score(prompts, rejected)

    @property
    @abstractmethod
    def num_columns(self) -> int:
        """Columns of a scored row."""

    @property
    def num_members(self) -> int | None:
        """K, for a source that compares members; None for one that has its variance from elsewhere."""
        return None

    @property
    def description(self) -> str:
        """What it is, in a few words, for cards and tables."""
        return "one reward model with a Gaussian or learnt variance"

    def reward_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
        """The rewards of scored rows, float64, in the unit that `estimate` has them in; needs no anchor."""
        return self._checked(scores)[:, 0]

    def members_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch members"] | None:
        """The members' rewards of scored rows, float64, in the unit of the estimate; None without members."""
        return None

    def variance_parts(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> dict[str, float]:
        """Mean variance of scored rows by where it comes from, for a trainer's log; nothing for most sources.

        Args:
            scores, anchors: as in `estimate`.
        """
        return {}

    def check_reads(self, text: Text) -> None:
        """Refuse a prompt or completion of a format that one of the models can't read, before anything is sampled.

        Raises:
            ModelError: it is messages, and a tokenizer has no chat template.
        """
        for encoder in _encoders(self):
            encoder.check_reads(text)

    def estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None) -> RewardEstimate:
        """Turn scored rows into rewards with a variance; pure arithmetic.

        A row's variance depends on the row and its anchor alone: other completions of its prompt change nothing.

        Args:
            scores: rows as `score` gave them, in any order, from any number of calls or processes.
            anchors: one for each row (`surefoot.rewards.anchors` makes them); None, or a NaN row of theirs, takes the
                mean over the calibration set.

        Raises:
            DataError: an anchor is missing and the source isn't calibrated; or the shapes disagree.
        """
        x = self._checked(scores)
        if not self.centred:
            estimated = self._estimate(x, None)
        else:
            anchors = self._complete(x, anchors)
            estimated = self._estimate(x, anchors)
        if not estimated.has_variance:
            return estimated
        code = None if anchors is None or not self.centred else self._codes(anchors)
        return replace(estimated, epistemic=self.variance_factor * estimated.variance, anchor=code)

    @abstractmethod
    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        """`estimate` in float64, with every anchor known, before the variance factor."""

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins of pairs with their own variance, paired before reducing; no anchor is needed."""
        margin = self._margins(self._checked(chosen), self._checked(rejected))
        return replace(margin, variance=self.variance_factor * margin.variance)

    @abstractmethod
    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """`margins` in float64, before the variance factor."""

    def calibrate(
        self,
        scores: Float[Tensor, "batch columns"],
        anchors: Anchors | None = None,
        *,
        variance_needed: bool = True,
    ) -> Calibration:
        """Fit and keep the constants from scored rows of the reference policy (or of held-out text).

        Args:
            scores: what the mean weight is to be 1 over.
            anchors: of the rows, of the kind that `estimate` will be given; None centres by the rows' own mean.
            variance_needed: False where the reward alone is used: members that agree exactly on all rows are then
                calibrated without a prior, and `estimate` gives no variance.

        Raises:
            DataError: fewer than two rows were scored. VarianceError: too few rows to fit a prior, or all members
                agree exactly.
        """
        x = self._checked(scores)
        held = self.calibration
        try:
            fitted = self._constants(x, anchors) if variance_needed else self._lenient_constants(x, anchors)
            self.calibration = replace(fitted, variance_factor=self.variance_factor)
            self.calibration = self._with_reference(x, anchors, self.calibration)
        except BaseException:
            self.calibration = held
            raise
        return self.calibration

    @abstractmethod
    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        """What `_estimate` needs to know of the calibration rows: offsets, scales, prior."""

    def _lenient_constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        """As `_constants`, where no variance is needed."""
        return self._constants(scores, anchors)

    def _with_reference(
        self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None, fitted: Calibration
    ) -> Calibration:
        estimated = self.estimate(scores, anchors)
        if not estimated.has_variance:
            return fitted
        known = estimated.variance[~estimated.variance.isnan()]
        if len(known) < 2:
            raise DataError(f"calibration needs at least two scored completions, got {len(known)}")
        mean = float(known.mean())
        notes = dict(fitted.notes)
        notes["weight_cv"] = float(known.std(correction=1)) / mean if mean > 0 else 0.0
        reliability = self._reliability(scores, anchors)
        if reliability is not None:
            notes["reliability"] = reliability
        return replace(fitted, reference_variance=mean, notes=notes)

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        """Of the variance over these rows (`ensemble.reliability`); None where it can't be told."""
        return None

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        """The anchor of a completion that has no other: the mean row over the calibration set; None if unknown."""
        return None

    def _checked(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch columns"]:
        if scores.ndim != 2 or scores.shape[1] != self.num_columns:
            raise DataError(f"'{self.name}' reads rows of {self.num_columns} columns, got {tuple(scores.shape)}")
        return scores.to(torch.float64)

    def _complete(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Anchors:
        """The anchors, with the calibration's where they are unknown."""
        if anchors is not None and anchors.rows.shape != scores.shape:
            raise DataError(
                f"'{self.name}' was given anchors of shape {tuple(anchors.rows.shape)} for scores of shape "
                f"{tuple(scores.shape)}; give one row for each completion, made with this source"
            )
        own = self._calibration_anchor()
        if anchors is None:
            if own is None:
                raise DataError(f"'{self.name}' has no calibration to centre by; give anchors, or calibrate it first")
            return Anchors(own.to(scores).expand_as(scores), "calibration", scores.new_full((len(scores),), torch.inf))
        unknown = self._unknown(anchors) & ~scores.isnan().all(dim=1)
        if not bool(unknown.any()):
            return replace(anchors, rows=anchors.rows.to(scores), count=anchors.count.to(scores))
        if own is None:
            raise DataError(
                f"row {int(unknown.nonzero()[0])} has no anchor (no other completion of its prompt was scored), and "
                f"'{self.name}' isn't calibrated; calibrate it first, or score at least two completions per prompt"
            )
        rows = torch.where(unknown[:, None], own.to(scores), anchors.rows.to(scores))
        return replace(anchors, rows=rows, count=torch.where(unknown, torch.inf, anchors.count.to(scores)))

    def _unknown(self, anchors: Anchors) -> "torch.Tensor":
        return anchors.rows.isnan().all(dim=1)

    def _codes(self, anchors: Anchors) -> Int[Tensor, "batch"]:
        """Indices into `ANCHOR_KINDS`; an anchor without sampling error is the calibration's."""
        exact = anchors.count.isinf()
        usual = torch.full_like(exact, ANCHOR_KINDS.index(anchors.kind), dtype=torch.long)
        return torch.where(exact, ANCHOR_KINDS.index("calibration"), usual)

    def fit_variance_factor(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> float:
        """Fit and keep the one factor that makes held-out labels likeliest; calibrate again afterwards.

        Args:
            chosen, rejected: scored rows of pairs that the source was not trained on.
        """
        self.variance_factor = 1.0
        margin = self.margins(chosen, rejected)
        known = ~(margin.mean.isnan() | margin.variance.isnan())
        self.variance_factor = ensemble.fit_variance_factor(margin.mean[known], margin.variance[known])
        return self.variance_factor

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        """Train the source, or put it together, as `surefoot reward` asks.

        Raises:
            ModelError: this kind isn't made by `surefoot reward`.
        """
        raise ModelError(f"kind: {cls.kind} isn't made by `surefoot reward`")

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Write the source to a directory that `load_source` reads: safetensors and JSON only."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> RewardSource:
        """Read what `save` wrote. `load_source` calls it and adds calibration and diagnosis."""

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Save the source with a model card and upload it; `load_source(repository)` loads it again.

        Args:
            repository: owner/name on the hub.
            token: None takes the one that the hub's own login left, or HF_TOKEN.

        Returns:
            The address of the commit.
        """
        from surefoot.rewards.hub import push

        return push(self, repository, private=private, token=token)


class MemberSource(RewardSource):
    """A source whose columns are the raw scores of K members.

    Attributes:
        variance_kind: "moderated", or "raw", which can be riskier than no variance (docs/method.md 3.2).
        scale_members: divide each member by its standard deviation on the calibration set.

    Both are kept in `calibration.json` and taken up again by `load_source`.
    """

    variance_kind: ensemble.VarianceKind = "moderated"
    scale_members: bool = False

    @property
    @abstractmethod
    def num_members(self) -> int:
        """K."""

    @property
    def num_columns(self) -> int:
        return self.num_members

    @property
    def description(self) -> str:
        return f"{self.num_members} members"

    def members_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch members"]:
        x = self._checked(scores)
        return x if self.calibration is None else x / x.new_tensor(self.calibration.scales)

    def reward_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
        return self.members_of(scores).nanmean(dim=1)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        rows = None if anchors is None else anchors.rows
        return ensemble.estimate(scores, rows, self.calibration, variance=self.variance_kind)

    def _complete(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Anchors:
        if self.num_members == 1 and self.calibration is None:  # one member has no variance: nothing is centred
            return Anchors(torch.zeros_like(scores), "calibration", scores.new_full((len(scores),), torch.inf))
        return super()._complete(scores, anchors)

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        return ensemble.margins(self.members_of(chosen), self.members_of(rejected))

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        rows = None if anchors is None else self._filled(scores, anchors)
        fitted = ensemble.calibrate(scores, rows, scale=self.scale_members)
        return replace(fitted, variance_kind=self.variance_kind)

    def _lenient_constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        rows = scores.nanmean(dim=0) if anchors is None else self._filled(scores, anchors)
        if self.num_members < 2 or bool((ensemble.sample_variance(ensemble.centre(scores, rows)) > 0).any()):
            return self._constants(scores, anchors)
        ones = (1.0,) * self.num_members
        return Calibration(tuple(scores.nanmean(dim=0).tolist()), ones, None, None, len(scores))

    def _filled(self, scores: Float[Tensor, "batch columns"], anchors: Anchors) -> Float[Tensor, "batch columns"]:
        """The anchors' rows, with the members' means over these scores where they are unknown."""
        rows = anchors.rows.to(scores)
        return torch.where(self._unknown(anchors)[:, None], scores.nanmean(dim=0), rows)

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        if self.calibration is None or self.num_members < 2:
            return None
        rows = torch.tensor(self.calibration.offsets) if anchors is None else self._filled(scores, anchors)
        value = ensemble.reliability(ensemble.centre(scores, rows) / torch.tensor(self.calibration.scales))
        return None if math.isnan(value) else value

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return None if self.calibration is None else torch.tensor(self.calibration.offsets, dtype=torch.float64)


def given_estimate(mean: Float[Tensor, "batch"], variance: Float[Tensor, "batch"]) -> RewardEstimate:
    """An estimate whose variance is known as it stands: no members, infinite degrees of freedom."""
    return RewardEstimate(mean=mean, epistemic=variance, degrees_of_freedom=torch.full_like(mean, torch.inf))


def plain_constants(mean: Float[Tensor, "batch"]) -> Calibration:
    """The constants of a source that needs none but the mean reward of its calibration rows."""
    known = mean[~mean.isnan()]
    return Calibration((float(known.mean()) if len(known) else 0.0,), (1.0,), None, None, len(mean))


_HOLD_ENCODERS = ("encoder", "members", "trunk", "sources", "reward", "variance")


def _encoders(thing: Any) -> Iterator[TextEncoder]:
    """The text encoders of a source, of its members, and of the sources inside it."""
    if isinstance(thing, TextEncoder):
        yield thing
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from _encoders(item)
    elif thing is not None and not isinstance(thing, torch.nn.Module):
        for name in _HOLD_ENCODERS:
            yield from _encoders(getattr(thing, name, None))
