"""The one interface of every reward source, and how a saved one is loaded.

Scoring has two steps. `score` runs the models and gives plain numbers per row, which can be gathered over processes,
cached or stored; `estimate` is arithmetic on those numbers and on the prompts' anchors. A trainer gathers between the
two.
"""

from __future__ import annotations

import math
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from surefoot.errors import DataError, ModelError, SurefootError
from surefoot.files import read_json, write_json, write_text
from surefoot.maths import ensemble
from surefoot.rewards.card import model_card
from surefoot.rewards.kinds.judge.access import JudgeAccess, given
from surefoot.rewards.saved import SOURCE, check_finite, check_folder, read_source
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.types import ANCHOR_KINDS, Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = [
    "SOURCE",
    "MemberSource",
    "RewardSource",
    "given_estimate",
    "load_source",
    "plain_constants",
    "save_calibration",
    "write_card",
]

CALIBRATION = "calibration.json"
DIAGNOSIS = "diagnose.json"

_KINDS = {
    "borrowed": "surefoot.rewards.kinds.borrowed_variance:BorrowedVariance",
    "independent": "surefoot.rewards.kinds.independent.source:IndependentMembers",
    "distilled": "surefoot.rewards.kinds.distilled:DistilledReward",
    "dropout": "surefoot.rewards.kinds.dropout:DropoutMembers",
    "heads": "surefoot.rewards.kinds.heads.source:SharedTrunkHeads",
    "judge": "surefoot.rewards.kinds.judge.source:JudgeSource",
    "laplace": "surefoot.rewards.kinds.laplace:LaplaceRewardModel",
    "linear": "surefoot.rewards.kinds.linear:LinearReward",
    "lora": "surefoot.rewards.kinds.lora.source:LoraMembers",
    "mixed": "surefoot.rewards.kinds.mixed:MixedSources",
    "smoothed": "surefoot.rewards.kinds.smoothed:SmoothedVariance",
}


_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    SafetensorError,
)
"""What loading raises, deep down, on a source whose parts are missing or don't fit."""
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "**/*.json", "**/*.safetensors", "**/*.txt"]
"""What is taken from the hub: weights as safetensors, configurations, tokenizers; never code or pickles."""


class RewardSource(ABC):
    """Gives rewards with a variance.

    Attributes:
        name: shown in logs and tables.
        centred: whether the variance is taken of the anchored reward; False where it is given as it stands.
        calibration: constants fitted on a calibration set; None until `calibrate`.
        variance_factor: multiplies every variance; 1 until `fit_variance_factor`.
        diagnosis: what `surefoot diagnose` left beside the source, if it was loaded from there.
    """

    name: str
    centred: bool = True
    calibration: Calibration | None = None
    variance_factor: float = 1.0
    diagnosis: dict[str, Any] | None = None

    @abstractmethod
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Run the models: one row per completion, float32 on the CPU, NaN where it couldn't be scored.

        The columns mean what `estimate` takes them to mean; for a `MemberSource` they are the members' raw scores.
        """

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
            found = self._estimate(x, None)
        else:
            anchors = self._complete(x, anchors)
            found = self._estimate(x, anchors)
        if not found.has_variance:
            return found
        code = None if anchors is None or not self.centred else self._codes(anchors)
        return replace(found, epistemic=self.variance_factor * found.variance, anchor=code)

    @abstractmethod
    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        """`estimate` in float64, with every anchor known, before the variance factor."""

    @abstractmethod
    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins of pairs with their own variance, paired before reducing; no anchor is needed."""

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
        found = self.estimate(scores, anchors)
        if not found.has_variance:
            return fitted
        known = found.variance[~found.variance.isnan()]
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
        found = self.margins(chosen, rejected)
        known = ~(found.mean.isnan() | found.variance.isnan())
        self.variance_factor = ensemble.fit_variance_factor(found.mean[known], found.variance[known])
        return self.variance_factor

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Write the source to a directory that `load_source` reads: safetensors and JSON only."""

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Save the source with a model card and upload it; `load_source(repository)` loads it again.

        Args:
            repository: owner/name on the hub.
            token: None takes the one that the hub's own login left, or HF_TOKEN.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "source"
            self.save(folder)
            write_card(folder, self, repository)
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder))


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

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        rows = None if anchors is None else anchors.rows
        return ensemble.estimate(scores, rows, self.calibration, variance=self.variance_kind)

    def _complete(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Anchors:
        if self.num_members == 1 and self.calibration is None:  # one member has no variance: nothing is centred
            return Anchors(torch.zeros_like(scores), "calibration", scores.new_full((len(scores),), torch.inf))
        return super()._complete(scores, anchors)

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        scales = torch.ones(self.num_members) if self.calibration is None else torch.tensor(self.calibration.scales)
        found = ensemble.margins(chosen / scales, rejected / scales)
        return replace(found, variance=self.variance_factor * found.variance)

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        rows = None if anchors is None else self._filled(scores, anchors)
        found = ensemble.calibrate(scores, rows, scale=self.scale_members)
        return replace(found, variance_kind=self.variance_kind)

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
        found = ensemble.reliability(ensemble.centre(scores, rows) / torch.tensor(self.calibration.scales))
        return None if math.isnan(found) else found

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return None if self.calibration is None else torch.tensor(self.calibration.offsets, dtype=torch.float64)


def given_estimate(mean: Float[Tensor, "batch"], variance: Float[Tensor, "batch"]) -> RewardEstimate:
    """An estimate whose variance is known as it stands: no members, infinite degrees of freedom."""
    return RewardEstimate(mean=mean, epistemic=variance, degrees_of_freedom=torch.full_like(mean, torch.inf))


def plain_constants(mean: Float[Tensor, "batch"]) -> Calibration:
    """The constants of a source that needs none but the mean reward of its calibration rows."""
    known = mean[~mean.isnan()]
    return Calibration((float(known.mean()) if len(known) else 0.0,), (1.0,), None, None, len(mean))


def load_source(
    directory: str | Path,
    device: str | torch.device | None = None,
    *,
    judge: JudgeAccess | Mapping[str, JudgeAccess] | None = None,
) -> RewardSource:
    """Load any saved source by its `source.json`, with its calibration if it has one.

    What is loaded isn't trusted: no code of it runs, and it names nothing outside of its folder but hub models.

    Args:
        directory: what `save` wrote, or the name of a source on the hub (`push_to_hub`).
        device: where to run it; None takes the first accelerator, else the CPU.
        judge: where a judge is asked that is the source or a part of it, or that for each model's name; if None, the
            environment says (`judge.access`). The files never do.

    Raises:
        ConfigError: it is a judge, and nobody says where to ask it.
        ModelError: not a source directory, of a kind this version doesn't know, or with a path, link, field or number
            that a source can't have; the message says which.
    """
    folder = Path(directory)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(directory)):
        folder = _download(str(directory))
    if not (folder / SOURCE).exists():
        raise ModelError(f"{folder} is not a reward source: it has no {SOURCE}; train one with `surefoot reward`")
    check_folder(folder)
    kind = read_source(folder).get("kind")
    if kind not in _KINDS:
        raise ModelError(f"{folder / SOURCE} is of kind {kind!r}; this version knows {', '.join(sorted(_KINDS))}")
    module, name = _KINDS[kind].split(":")
    try:
        with given(judge):
            source = getattr(import_module(module), name).load(folder, device)
        return _with_figures(source, folder)
    except SurefootError:
        raise
    except _BROKEN as error:
        said = (
            f"it lacks {error}" if isinstance(error, KeyError) else str(error).split("\n")[0] or type(error).__name__
        )
        raise ModelError(f"{folder} can't be loaded as kind: {kind}: {said or type(error).__name__}") from error


def _with_figures(source: RewardSource, folder: Path) -> RewardSource:
    """The source with what was measured of it, if it lies beside: calibration and diagnosis."""
    if (folder / CALIBRATION).exists():
        source.calibration = Calibration.from_dict(check_finite(folder / CALIBRATION))
        source.variance_factor = source.calibration.variance_factor
        variance = source.calibration.variance_kind
        if isinstance(source, MemberSource) and variance != "smoothed":
            source.scale_members = any(scale != 1 for scale in source.calibration.scales)
            source.variance_kind = variance
    if (folder / DIAGNOSIS).exists():
        source.diagnosis = dict(read_json(folder / DIAGNOSIS))
    return source


def _download(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(f"there is no directory {repository}, and the hub doesn't give it: {error}") from error


def write_card(directory: str | Path, source: RewardSource, repository: str | None = None) -> None:
    """Write the model card of a saved source beside it; `repository` is where it can be loaded from."""
    folder = Path(directory)
    held = read_json(folder / SOURCE)
    members = getattr(source, "num_members", None)
    card = model_card(
        held["kind"], source.name, members, source.calibration, repository or str(directory), held.get("figures")
    )
    write_text(folder / "README.md", card)


def save_calibration(directory: str | Path, calibration: Calibration | None) -> None:
    """Write `calibration.json` beside a source, if there is one."""
    if calibration is not None:
        write_json(Path(directory) / CALIBRATION, calibration.to_dict())


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
