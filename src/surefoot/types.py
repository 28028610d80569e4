"""Data types that are passed between packages: frozen, and validated when they are made.

Higher reward is better throughout; every variance is in reward². NaN means *unscored*, never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import DataError, VarianceError

__all__ = [
    "ANCHOR_KINDS",
    "AnchorKind",
    "Anchors",
    "Calibration",
    "Completions",
    "MarginEstimate",
    "PreferencePair",
    "RewardEstimate",
    "VariancePrior",
]

Message = dict[str, Any]
Text = str | list[Message]
"""A prompt or completion in either of TRL's formats: plain text, or a list of messages."""
AnchorKind = Literal["reference", "dataset", "calibration", "group"]
"""Kind of completions that an anchor is the mean of: the reference policy's, the dataset's own for that prompt, the
calibration set's (of other prompts), or the group that is being scored (right only if the reference drew it)."""
ANCHOR_KINDS: tuple[AnchorKind, ...] = get_args(AnchorKind)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One labelled comparison in TRL's preference format: `chosen` was preferred to `rejected`."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            value = getattr(self, name)
            if value is None:
                raise DataError(f"PreferencePair.{name} is None; drop the pair or fill in its text")
            if name != "prompt" and not value:
                raise DataError(f"PreferencePair.{name} is empty; drop the pair")
        if self.margin is not None and not math.isfinite(self.margin):
            raise DataError(f"PreferencePair.margin is {self.margin}; give a finite number or leave it out")


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions with the prompts they answer; rows of one prompt share a `group`.

    Args:
        prompts: one per row.
        completions: one per row.
        groups: one integer per row. Rewards are centred within a group (docs/method.md 2.1).
    """

    prompts: list[Text]
    completions: list[Text]
    groups: list[int]

    def __post_init__(self) -> None:
        sizes = {len(self.prompts), len(self.completions), len(self.groups)}
        if len(sizes) != 1:
            raise DataError(
                f"Completions need one prompt and one group for each completion, got {len(self.prompts)} prompts, "
                f"{len(self.completions)} completions and {len(self.groups)} groups"
            )

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchors of a batch: the rows by which scored rows are centred before their variance (docs/method.md 2.1).

    A preference fixes a reward only up to a constant per prompt. The anchor is that constant: the mean of the source's
    scored row over `count` completions of the prompt, drawn once and then fixed. It must not depend on the policy that
    is being trained: as the policy concentrates, its own completions become alike, and their variance vanishes.

    Args:
        rows: (batch, columns) mean scored rows, in the columns of `RewardSource.score`; NaN where unknown.
        kind: whose completions they are the mean of.
        count: (batch,) how many completions; infinite where the anchor has no sampling error.
        holds_own: whether the mean counts the completion itself, as it does where a group is its own anchor.

    Raises:
        DataError: shapes disagree, or an unknown kind.
    """

    rows: Float[Tensor, "batch columns"]
    kind: AnchorKind
    count: Float[Tensor, "batch"]
    holds_own: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ANCHOR_KINDS:
            raise DataError(f"unknown kind of anchor '{self.kind}' (known: {', '.join(ANCHOR_KINDS)})")
        if self.rows.ndim != 2 or self.count.shape != self.rows.shape[:1]:
            raise DataError(
                f"anchors need rows of shape (batch, columns) and one count each, got {tuple(self.rows.shape)} and "
                f"{tuple(self.count.shape)}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, start: int | None, end: int | None = None) -> Anchors:
        """Anchors of some of the columns, for a source that combines others."""
        return replace(self, rows=self.rows[:, start:end])


@dataclass(frozen=True, eq=False)
class RewardEstimate:
    """Rewards of a batch of completions, each with the variance of its error if that is known.

    Args:
        mean: (batch,) reward; NaN where the completion is unscored.
        members: (batch, members) the members' rewards, centred by their anchors and brought back to one common offset
            per prompt, so that they average to `mean`; None for a source that has no members.
        epistemic: (batch,) variance of the anchored reward, or None if it is unknown (one member). Read it
            as `variance`, which raises rather than return None.
        degrees_of_freedom: (batch,) of the raw variance estimate; infinite for a variance known in closed form.
        groups: (batch,) prompt ids, where an aggregate needs to know which completions share a prompt.
        anchor: (batch,) index into `ANCHOR_KINDS` of the anchor that the variance was taken from; None for a source
            whose variance is given as it stands.

    Raises:
        DataError: shapes disagree, or a variance is negative or infinite.
    """

    mean: Float[Tensor, "batch"]
    members: Float[Tensor, "batch members"] | None = None
    epistemic: Float[Tensor, "batch"] | None = None
    degrees_of_freedom: Float[Tensor, "batch"] | None = None
    groups: Int[Tensor, "batch"] | None = None
    anchor: Int[Tensor, "batch"] | None = None

    def __post_init__(self) -> None:
        rows = self.mean.shape
        if len(rows) != 1:
            raise DataError(f"RewardEstimate.mean must have shape (batch,), got {tuple(rows)}")
        for name in ("members", "epistemic", "degrees_of_freedom", "groups", "anchor"):
            value = getattr(self, name)
            if value is not None and value.shape[:1] != rows:
                raise DataError(f"RewardEstimate.{name} has {value.shape[0]} rows, but mean has {rows[0]}")
        if self.epistemic is not None and bool(((self.epistemic < 0) | self.epistemic.isinf()).any()):
            raise DataError("RewardEstimate.variance must be finite and not negative; check the members' scores")

    @property
    def variance(self) -> Float[Tensor, "batch"]:
        """Variance of the centred reward, (batch,), in reward².

        Raises:
            VarianceError: it is unknown, because the source has one member.
        """
        if self.epistemic is None:
            raise VarianceError(
                "this reward has no variance: it comes from one member. Train or name at least two members, or use "
                "an objective without weighting"
            )
        return self.epistemic

    @property
    def has_variance(self) -> bool:
        return self.epistemic is not None

    @property
    def scored(self) -> "torch.Tensor":
        """Whether each completion has a reward, (batch,)."""
        return ~self.mean.isnan()

    @property
    def anchor_kinds(self) -> list[AnchorKind | None]:
        """Kind of anchor of each row; None for a source whose variance takes no anchor."""
        if self.anchor is None:
            return [None] * len(self)
        return [ANCHOR_KINDS[code] for code in self.anchor.tolist()]

    def __len__(self) -> int:
        return self.mean.shape[0]


@dataclass(frozen=True, eq=False)
class MarginEstimate:
    """Margin r(chosen) − r(rejected) of pairs, with its own variance, taken member by member (docs/method.md 1.2).

    Args:
        mean: (pairs,) mean margin.
        variance: (pairs,) its variance across members; not the sum of two reward variances.
        members: (pairs, members) each member's margin, or None.
    """

    mean: Float[Tensor, "pairs"]
    variance: Float[Tensor, "pairs"]
    members: Float[Tensor, "pairs members"] | None = None


@dataclass(frozen=True, slots=True)
class VariancePrior:
    """Scaled inverse-χ² prior of the members' variance, fitted on a calibration set (docs/method.md 3.2).

    Args:
        degrees_of_freedom: d₀ ≥ 0; infinite when the sample variances spread no more than chance explains, in which
            case every completion has the same variance and all weights are 1.
        variance: s₀² > 0, in reward².
    """

    degrees_of_freedom: float
    variance: float

    def __post_init__(self) -> None:
        if not self.degrees_of_freedom >= 0:
            raise VarianceError(f"prior degrees of freedom must be ≥ 0, got {self.degrees_of_freedom}")
        if not (self.variance > 0 and math.isfinite(self.variance)):
            raise VarianceError(f"prior variance must be positive and finite, got {self.variance}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of a source that are fitted on a calibration set; stored beside the source as JSON.

    Args:
        offsets: each member's mean over the calibration set: the anchor of a completion that has no other.
        scales: each member's standard deviation after centring, or all 1 where scaling is off.
        prior: of the members' variance; None for one member, and for members that agreed exactly on all rows.
        reference_variance: s̄², mean moderated variance of the reference policy's completions; makes the mean weight 1.
        rows: number of completions.
        notes: further figures: `weight_cv`, the coefficient of variation of the weights, and
            `reliability` of the variance (docs/method.md 6), where it is known.
        variance_factor: multiplies every variance of the source; fitted by likelihood on held-out pairs.
        variance_kind: "moderated", "raw" or "smoothed"; what `reference_variance` is the mean of.
    """

    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    prior: VariancePrior | None
    reference_variance: float | None
    rows: int
    notes: dict[str, float] = field(default_factory=dict)
    variance_factor: float = 1.0
    variance_kind: Literal["moderated", "raw", "smoothed"] = "moderated"

    def __post_init__(self) -> None:
        if not (self.variance_factor > 0 and math.isfinite(self.variance_factor)):
            raise DataError(f"Calibration.variance_factor must be positive, got {self.variance_factor}")
        if len(self.offsets) != len(self.scales):
            raise DataError(f"Calibration has {len(self.offsets)} offsets but {len(self.scales)} scales")
        if any(not scale > 0 for scale in self.scales):
            raise DataError(
                f"Calibration scales must be positive, got {self.scales}; a member gives one constant score"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite d₀ is written as the string "inf"."""
        prior = None
        if self.prior is not None:
            d0 = self.prior.degrees_of_freedom
            prior = {
                "degrees_of_freedom": d0 if math.isfinite(d0) else "inf",
                "variance": self.prior.variance,
            }
        return {
            "offsets": list(self.offsets),
            "scales": list(self.scales),
            "prior": prior,
            "reference_variance": self.reference_variance,
            "rows": self.rows,
            "notes": dict(self.notes),
            "variance_factor": self.variance_factor,
            "variance_kind": self.variance_kind,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote."""
        prior = values["prior"]
        return cls(
            offsets=tuple(values["offsets"]),
            scales=tuple(values["scales"]),
            prior=None if prior is None else VariancePrior(float(prior["degrees_of_freedom"]), prior["variance"]),
            reference_variance=values["reference_variance"],
            rows=values["rows"],
            notes=dict(values.get("notes", {})),
            variance_factor=values.get("variance_factor", 1.0),
            variance_kind=values.get("variance_kind", "moderated"),
        )


GroupIds = Int[Tensor, "batch"]
"""(batch,) integers; rows of one prompt share one."""
