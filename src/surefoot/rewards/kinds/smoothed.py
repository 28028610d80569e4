"""An ensemble whose variance is smoothed over the features of a frozen trunk (`variance: smoothed`).

The members' log variance is regressed on functions of the anchored features (`surefoot.maths.smoothing`): five members
then say nearly as much of the variance as fifty. The regression is made anew by every `calibrate`, and lies in the
calibration's notes; the trunk and the scatter of the training pairs stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.files import whole_directory, write_json
from surefoot.maths import ensemble
from surefoot.maths.smoothing import LogVariance, PairScatter, fit_log_variance, smoothed_reliability
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import SOURCE, read_source, read_tensors, save_calibration
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.feature_cache import FeatureCache, Pooling, compute_features
from surefoot.rewards.trunk.loading import choose_device, load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs, prompt_keys
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["FrozenTrunk", "SmoothedVariance", "smooth_variance"]


@dataclass(slots=True)
class FrozenTrunk:
    """Where the features come from.

    Args:
        model: an `AutoModel`, frozen.
        encoder: its text encoder.
        pooling, layer: which hidden states become features, and how.
        dtype: that the model was loaded in, to be saved.
    """

    model: Any
    encoder: TextEncoder
    pooling: Pooling
    layer: int
    dtype: Dtype = "auto"

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch features"]:
        rows, pad = self.encoder(prompts, completions), self.encoder.tokenizer.pad_token_id
        return compute_features(
            self.model, rows, pooling=self.pooling, layer=self.layer, pad_token_id=pad, keys=prompt_keys(prompts)
        )


@register("smoothed")
class SmoothedVariance(RewardSource):
    """The mean of an ensemble, with its variance smoothed over features.

    Columns are the members' raw scores, then the standardised features.

    Args:
        members: the ensemble.
        trunk: gives the features; None takes the trunk of an ensemble of heads, which then runs once for both.
        spread: (features,) standard deviations over the training texts, by which features are divided.
        scatter: of the training pairs.

    Raises:
        ConfigError: one member, or no trunk.
    """

    def __init__(
        self,
        members: MemberSource,
        trunk: FrozenTrunk | None,
        spread: Float[Tensor, "features"],
        scatter: PairScatter,
    ) -> None:
        if members.num_members < 2:
            raise ConfigError(f"variance: smoothed needs at least two members, got {members.num_members}")
        if trunk is None and not isinstance(members, SharedTrunkHeads):
            raise ConfigError(f"'{members.name}' has no trunk that its members share; give one for the features")
        self.members, self.trunk = members, trunk
        self.spread, self.scatter = spread.float(), scatter
        self.name = f"{members.name}, smoothed"

    @property
    def num_members(self) -> int:
        """K."""
        return self.members.num_members

    @property
    def num_columns(self) -> int:
        return self.num_members + len(self.spread)

    @property
    def description(self) -> str:
        return self.members.description

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        if self.trunk is not None:
            scores, features = self.members.score(prompts, completions), self.trunk(prompts, completions)
        else:
            assert isinstance(self.members, SharedTrunkHeads)
            features = self.members.features(prompts, completions)
            scores = self.members.heads(features)
        return torch.cat([scores, features / self.spread], dim=1)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        assert anchors is not None
        calibration, fitted = self._fitted()
        count = self.num_members
        own = replace(calibration, offsets=calibration.offsets[:count], scales=calibration.scales[:count])
        estimated = ensemble.estimate(scores[:, :count], anchors.rows[:, :count], own, variance="raw")
        variance = fitted.of(self.scatter.lengths((scores - anchors.rows)[:, count:]))
        return replace(estimated, epistemic=torch.where(estimated.mean.isnan(), torch.nan, variance))

    def members_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch members"]:
        members = self._checked(scores)[:, : self.num_members]
        if self.calibration is None:
            return members
        return members / members.new_tensor(self.calibration.scales[: self.num_members])

    def reward_of(self, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
        return self.members_of(scores).nanmean(dim=1)

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """The other completion is the anchor of a margin: its variance is that of the features' difference."""
        _, fitted = self._fitted()
        members = self.members_of(chosen) - self.members_of(rejected)
        mean = members.nanmean(dim=1)
        variance = fitted.of(self.scatter.lengths((chosen - rejected)[:, self.num_members :]))
        return MarginEstimate(mean, torch.where(mean.isnan(), torch.nan, variance), members)

    def _fitted(self) -> tuple[Calibration, LogVariance]:
        fitted = None if self.calibration is None else LogVariance.from_notes(self.calibration.notes)
        if self.calibration is None or fitted is None:
            raise DataError(f"'{self.name}' isn't calibrated: its variance is fitted by `calibrate`")
        return self.calibration, fitted

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        count = self.num_members
        rows = self._filled(scores, anchors)
        constants = ensemble.calibrate(scores[:, :count], rows[:, :count], scale=self.members.scale_members)
        members, lengths = self._centred(scores, rows, constants.scales)
        fitted = fit_log_variance(lengths, ensemble.sample_variance(members), ensemble.degrees_of_freedom(members))
        features = scores.shape[1] - count
        return replace(
            constants,
            offsets=tuple(scores.nanmean(dim=0).tolist()),
            scales=(*constants.scales, *[1.0] * features),
            notes=constants.notes | fitted.to_notes(),
            variance_kind="smoothed",
        )

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        if self.calibration is None:
            return None
        rows = self._filled(scores, anchors)
        members, lengths = self._centred(scores, rows, self.calibration.scales[: self.num_members])
        reliability = smoothed_reliability(members, lengths)
        return None if math.isnan(reliability) else reliability

    def _filled(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Tensor:
        """(batch, columns) anchors, with the means over these scores where they are unknown."""
        mean = scores.nanmean(dim=0).expand_as(scores)
        return mean if anchors is None else torch.where(self._unknown(anchors)[:, None], mean, anchors.rows.to(scores))

    def _centred(
        self, scores: Float[Tensor, "batch columns"], rows: Float[Tensor, "batch columns"], scales: tuple[float, ...]
    ) -> tuple[Float[Tensor, "batch members"], Float[Tensor, "batch ridges"]]:
        count = self.num_members
        members = ensemble.centre(scores[:, :count], rows[:, :count]) / scores.new_tensor(scales)
        return members, self.scatter.lengths((scores - rows)[:, count:])

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return None if self.calibration is None else torch.tensor(self.calibration.offsets, dtype=torch.float64)

    def _unknown(self, anchors: Anchors) -> "torch.Tensor":
        return anchors.rows[:, : self.num_members].isnan().all(dim=1)

    def save(self, directory: str | Path) -> None:
        tensors = {"spread": self.spread, "basis": self.scatter.basis, "values": self.scatter.values}
        held: dict[str, Any] = {"kind": "smoothed", "scale_members": self.members.scale_members}
        with whole_directory(directory) as folder:
            self.members.save(folder / "ensemble")
            if self.trunk is not None:
                self.trunk.model.save_pretrained(folder / "trunk")
                self.trunk.encoder.tokenizer.save_pretrained(folder / "trunk")
                held["trunk"] = {"pooling": self.trunk.pooling, "layer": self.trunk.layer,
                                 "dtype": self.trunk.dtype, "max_length": self.trunk.encoder.max_length}  # fmt: skip
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "smooth.safetensors")
            write_json(folder / SOURCE, held | {"name": self.name})
            save_calibration(folder, self.calibration)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> SmoothedVariance:
        held, tensors = read_source(directory), read_tensors(directory / "smooth.safetensors")
        members = load_source(directory / "ensemble", device)
        assert isinstance(members, MemberSource)
        members.scale_members = held["scale_members"]
        trunk = None
        if "trunk" in held:
            kept = held["trunk"] | {"dtype": kept_dtype(held["trunk"])}
            trunk = _frozen(directory / "trunk", device, **kept)
        source = cls(members, trunk, tensors["spread"], PairScatter(tensors["basis"], tensors["values"]))
        source.name = held["name"]
        return source


def smooth_variance(
    members: MemberSource,
    pairs: Dataset,
    trunk: str | Path,
    *,
    pooling: Pooling = "mean",
    layer: int = -1,
    max_length: int = 512,
    overlong: str = "drop",
    dtype: Dtype = "auto",
    cache_directory: str | Path | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> SmoothedVariance:
    """Wrap an ensemble; `calibrate` then fits the variance.

    Args:
        pairs: that the members were trained on, with `prompt`, `chosen`, `rejected`.
        trunk: directory or hub name of the model whose features are read, frozen; not used for heads, which have one.
        pooling, layer, dtype, max_length: how features are read; those of heads are their own.
        overlong: pairs over `max_length` are left out ("drop") or cut ("truncate").
        cache_directory: keeps features between runs.
        on_progress: called with (what is being done, share done).

    Raises:
        ConfigError: the ensemble has one member. DataError: the pairs are too long, or don't differ.
    """
    shared = isinstance(members, SharedTrunkHeads)
    frozen = (
        FrozenTrunk(members.trunk, members.encoder, members.pooling, members.layer)
        if isinstance(members, SharedTrunkHeads)
        else _frozen(trunk, device, pooling, layer, max_length, dtype)
    )
    encoded = encode_pairs(pairs, frozen.encoder, overlong=overlong)
    report = on_progress or (lambda what, share: None)
    features = FeatureCache(cache_directory).get(
        frozen.model,
        list(encoded["chosen_ids"]) + list(encoded["rejected_ids"]),
        pooling=frozen.pooling,
        layer=frozen.layer,
        pad_token_id=frozen.encoder.tokenizer.pad_token_id,
        keys=[*range(len(encoded))] * 2,
        on_progress=lambda share: report("features", share),
    )
    spread, count = features.std(dim=0, correction=1).clamp(min=1e-6), len(encoded)
    scatter = PairScatter.of((features[:count] - features[count:]) / spread)
    return SmoothedVariance(members, None if shared else frozen, spread, scatter)


def _frozen(
    trunk: str | Path,
    device: str | torch.device | None,
    pooling: Pooling,
    layer: int,
    max_length: int,
    dtype: Dtype,
) -> FrozenTrunk:
    model = load_trunk(trunk, choose_device(device), dtype)
    return FrozenTrunk(model, load_encoder(trunk, model, max_length), pooling, layer, dtype)
