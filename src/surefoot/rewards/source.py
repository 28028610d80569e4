"""The one interface of every reward source, and how a saved one is loaded.

Scoring has two steps. `score` runs the models and gives plain numbers per row, which can be gathered over processes,
cached or stored; `estimate` is arithmetic on those numbers and knows the groups. A trainer gathers between the two.
"""

from __future__ import annotations

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import DataError, ModelError
from surefoot.files import read_json, write_json, write_text
from surefoot.maths import ensemble
from surefoot.rewards.card import model_card
from surefoot.types import Calibration, MarginEstimate, RewardEstimate, Text

__all__ = [
    "SOURCE",
    "MemberSource",
    "RewardSource",
    "calibrated",
    "given_estimate",
    "load_source",
    "save_calibration",
    "write_card",
]

SOURCE = "source.json"
CALIBRATION = "calibration.json"
DIAGNOSIS = "diagnose.json"

_KINDS = {
    "borrowed": "surefoot.rewards.borrowed:BorrowedVariance",
    "independent": "surefoot.rewards.independent:IndependentMembers",
    "distilled": "surefoot.rewards.distilled:DistilledReward",
    "dropout": "surefoot.rewards.dropout:DropoutMembers",
    "heads": "surefoot.rewards.heads:SharedTrunkHeads",
    "judge": "surefoot.rewards.judge.source:JudgeSource",
    "laplace": "surefoot.rewards.laplace:LaplaceRewardModel",
    "lora": "surefoot.rewards.lora:LoraMembers",
    "mixed": "surefoot.rewards.judge.mixed:MixedSources",
}


_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "**/*.json", "**/*.safetensors", "**/*.txt"]
"""What is taken from the hub: weights as safetensors, configurations, tokenizers; never code or pickles."""


class RewardSource(ABC):
    """Gives rewards with a variance.

    Attributes:
        name: shown in logs and tables.
        calibration: constants fitted on a calibration set; None until `calibrate`.
        variance_factor: multiplies every variance; 1 until `fit_variance_factor`.
        diagnosis: what `surefoot diagnose` left beside the source, if it was loaded from there.
    """

    name: str
    calibration: Calibration | None = None
    variance_factor: float = 1.0
    diagnosis: dict[str, Any] | None = None

    @abstractmethod
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Run the models: one row per completion, float32 on the CPU, NaN where it couldn't be scored.

        The columns mean what `estimate` takes them to mean; for a `MemberSource` they are the members' raw scores.
        """

    @abstractmethod
    def estimate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> RewardEstimate:
        """Turn scored rows into rewards with a variance; pure arithmetic.

        Args:
            scores: rows as `score` gave them, in any order, from any number of calls or processes.
            groups: (batch,) prompt ids; None where every prompt has one completion (needs `calibration`).
        """

    @abstractmethod
    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins of pairs with their own variance, paired before reducing."""

    @abstractmethod
    def calibrate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> Calibration:
        """Fit and keep the constants from scored rows of the reference policy (or of held-out text)."""

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
        variance_kind: "moderated", or "raw", which can be riskier than no variance at all (DESIGN 2.2).
        scale_members: divide each member by its standard deviation on the calibration set.

    Both are kept in `calibration.json` and taken up again by `load_source`.
    """

    variance_kind: ensemble.VarianceKind = "moderated"
    scale_members: bool = False

    @property
    @abstractmethod
    def num_members(self) -> int:
        """K."""

    def estimate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> RewardEstimate:
        found = ensemble.estimate(scores, groups, self.calibration, variance=self.variance_kind)
        if self.variance_factor == 1 or not found.has_variance:
            return found
        return replace(found, epistemic=self.variance_factor * found.variance)

    def margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        scales = torch.ones(self.num_members) if self.calibration is None else torch.tensor(self.calibration.scales)
        found = ensemble.margins(chosen / scales, rejected / scales)
        return replace(found, variance=self.variance_factor * found.variance)

    def calibrate(
        self, scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"] | None = None
    ) -> Calibration:
        found = ensemble.calibrate(scores, groups, scale=self.scale_members, variance=self.variance_kind)
        if found.reference_variance is not None:
            found = replace(found, reference_variance=self.variance_factor * found.reference_variance)
        self.calibration = replace(found, variance_factor=self.variance_factor, variance_kind=self.variance_kind)
        return self.calibration


def given_estimate(
    mean: Float[Tensor, "batch"], variance: Float[Tensor, "batch"], variance_factor: float
) -> RewardEstimate:
    """An estimate whose variance is known as it stands: no members, infinite degrees of freedom."""
    return RewardEstimate(
        mean=mean, epistemic=variance_factor * variance, degrees_of_freedom=torch.full_like(mean, torch.inf)
    )


def calibrated(found: RewardEstimate, variance_factor: float) -> Calibration:
    """The calibration of a source without members: mean reward and mean variance of the scored rows.

    Raises:
        DataError: fewer than two rows were scored.
    """
    known = found.variance[found.scored]
    if len(known) < 2:
        raise DataError(f"calibration needs at least two scored completions, got {len(known)}")
    mean = float(known.mean())
    return Calibration(
        offsets=(float(found.mean.nanmean()),),
        scales=(1.0,),
        prior=None,
        reference_variance=mean,
        rows=len(found),
        notes={"weight_cv": float(known.std(correction=1)) / mean if mean > 0 else 0.0},
        variance_factor=variance_factor,
    )


def load_source(directory: str | Path, device: str | torch.device | None = None) -> RewardSource:
    """Load any saved source by its `source.json`, with its calibration if it has one.

    Args:
        directory: what `save` wrote, or the name of a source on the hub (`push_to_hub`).
        device: where to run it; None takes the first accelerator, else the CPU.

    Raises:
        ModelError: not a source directory, or of a kind this version doesn't know.
    """
    folder = Path(directory)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(directory)):
        folder = _download(str(directory))
    if not (folder / SOURCE).exists():
        raise ModelError(f"{folder} is not a reward source: it has no {SOURCE}; train one with `surefoot reward`")
    kind = read_json(folder / SOURCE).get("kind")
    if kind not in _KINDS:
        raise ModelError(f"{folder / SOURCE} is of kind {kind!r}; this version knows {', '.join(sorted(_KINDS))}")
    module, name = _KINDS[kind].split(":")
    source: RewardSource = getattr(import_module(module), name).load(folder, device)
    if (folder / CALIBRATION).exists():
        source.calibration = Calibration.from_dict(read_json(folder / CALIBRATION))
        source.variance_factor = source.calibration.variance_factor
        if isinstance(source, MemberSource):
            source.scale_members = any(scale != 1 for scale in source.calibration.scales)
            source.variance_kind = source.calibration.variance_kind
    if (folder / DIAGNOSIS).exists():
        source.diagnosis = read_json(folder / DIAGNOSIS)
    return source


def _download(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(f"there is no directory {repository}, and the hub doesn't give it: {error}") from error


def write_card(directory: str | Path, source: RewardSource, repository: str | None = None) -> None:
    """Write the model card of a saved source beside it; `repository` is where it can be loaded from."""
    folder = Path(directory)
    kind = str(read_json(folder / SOURCE)["kind"])
    members = source.num_members if isinstance(source, MemberSource) else None
    card = model_card(kind, source.name, members, source.calibration, repository or str(directory))
    write_text(folder / "README.md", card)


def save_calibration(directory: str | Path, calibration: Calibration | None) -> None:
    """Write `calibration.json` beside a source, if there is one."""
    if calibration is not None:
        write_json(Path(directory) / CALIBRATION, calibration.to_dict())
