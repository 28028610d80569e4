"""Measure how far the members of a reward source disagree, and whether their variance tells mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import VarianceError
from surefoot.maths import ensemble
from surefoot.metrics.intervals import Interval, auroc, kendall_tau, pairwise_agreement, spearman, wilson
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.gaussian import GaussianSource
from surefoot.rewards.source import RewardSource

__all__ = [
    "Disagreement",
    "KnownErrors",
    "disagreement_of_scores",
    "known_errors",
    "measure_disagreement",
    "member_scores",
]


POSTERIOR_DRAWS = 20
"""Models drawn from the posterior of a source without members, to stand for members."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Agreement and variance of K members on held-out pairs; intervals are of 95%.

    Args:
        pairs, members: how many.
        accuracy_of_members, accuracy_of_mean: share of pairs in which the chosen side scores higher.
        split: share of pairs on whose winner the members are not unanimous.
        minority: mean share of members on the losing side of a split pair, at most one half.
        agreement: mean over pairs of members of the share of pairs they rank alike.
        tau: mean over pairs of members of Kendall's τ of their margins.
        offset_overall: share of the raw variance that is each member's one offset over all texts.
        offset_per_prompt: the same with an offset per prompt (each pair a group); preferences fix neither.
        margin_sd: 10%, 50% and 90% quantiles of the margins' standard deviation over members, in reward.
        prior_freedom: d₀ of the margins' variance; None means infinite: no difference between pairs beyond chance.
        variance_cv: coefficient of variation of the moderated margin variances.
        error_auroc: how well each of these ranks the mean's mistakes before its successes: the margin's variance, its
            standard deviation over |margin|, and −|margin| alone, the baseline to beat.
    """

    pairs: int
    members: int
    accuracy_of_members: list[Interval]
    accuracy_of_mean: Interval
    split: Interval
    minority: float
    agreement: float
    tau: float
    offset_overall: float
    offset_per_prompt: float
    margin_sd: tuple[float, float, float]
    prior_freedom: float | None
    variance_cv: float
    error_auroc: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with the verdict; unknown figures are None."""
        values = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return values | {"verdict": self.verdict()}

    def verdict(self) -> list[str]:
        """What the figures mean, in plain words, by fixed rules."""
        return [_on_offsets(self), _on_heterogeneity(self), _on_errors(self)]


def measure_disagreement(source: RewardSource, pairs: Dataset) -> Disagreement:
    """Score the pairs and compare the members.

    Args:
        pairs: `prompt`, `chosen`, `rejected`.

    Raises:
        VarianceError: the source has no members, or one.
    """
    if source.num_members == 1:
        raise VarianceError(f"'{source.name}' has one member, and one member can't disagree; give at least two")
    if source.num_members is None and not isinstance(source, GaussianSource):
        raise VarianceError(f"'{source.name}' has no members to compare; diagnose the source that it was made from")
    chosen, rejected = (
        member_scores(source, source.score(pairs["prompt"], pairs[side])) for side in ("chosen", "rejected")
    )
    assert chosen is not None
    assert rejected is not None
    return disagreement_of_scores(chosen, rejected)


def member_scores(source: RewardSource, rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows members"] | None:
    """Rewards of the members; of models drawn from the posterior of a source that has one; None for other sources.

    Args:
        rows: (rows, columns) of `RewardSource.score`.
    """
    if isinstance(source, GaussianSource):
        return source.sample_members(rows, POSTERIOR_DRAWS)
    return source.members_of(rows)


def disagreement_of_scores(
    chosen: Float[Tensor, "pairs members"], rejected: Float[Tensor, "pairs members"]
) -> Disagreement:
    """Compare members by their scores; pairs that some member could not score are left out.

    Args:
        chosen, rejected: (pairs, members) raw scores.
    """
    usable = ~(chosen.isnan() | rejected.isnan()).any(dim=1)
    chosen, rejected = chosen[usable].double(), rejected[usable].double()
    if len(chosen) < 2:
        raise VarianceError(f"only {len(chosen)} pairs were scored by all members; at least two are needed")
    margins = ensemble.margins(chosen, rejected)
    x = (chosen - rejected).numpy()
    wins = (x > 0).mean(axis=1)
    prior = ensemble.fit_prior(margins.variance, float(chosen.shape[1] - 1))
    moderated = ensemble.moderate(margins.variance, float(chosen.shape[1] - 1), prior)
    sd = margins.variance.sqrt().numpy()
    texts, groups = torch.cat([chosen, rejected]), torch.arange(len(chosen)).repeat(2)
    split = (wins > 0) & (wins < 1)
    return Disagreement(
        pairs=len(x),
        members=x.shape[1],
        accuracy_of_members=[_accuracy(x[:, k]) for k in range(x.shape[1])],
        accuracy_of_mean=_accuracy(x.mean(axis=1)),
        split=wilson(int(split.sum()), len(x)),
        minority=float(np.minimum(wins, 1 - wins)[split].mean()) if split.any() else math.nan,
        agreement=pairwise_agreement(x),
        tau=kendall_tau(x),
        offset_overall=ensemble.offset_share(texts),
        offset_per_prompt=ensemble.offset_share(texts, groups),
        margin_sd=tuple(np.quantile(sd, [0.1, 0.5, 0.9]).tolist()),
        prior_freedom=None if math.isinf(prior.degrees_of_freedom) else prior.degrees_of_freedom,
        variance_cv=float(moderated.std(correction=1) / moderated.mean()),
        error_auroc=_error_auroc(x.mean(axis=1), sd),
    )


def _accuracy(margins: np.ndarray[Any, Any]) -> Interval:
    return wilson(int((margins > 0).sum()), len(margins))


def _error_auroc(mean: np.ndarray[Any, Any], sd: np.ndarray[Any, Any]) -> dict[str, Interval]:
    wrong = mean <= 0
    size = np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(sd / size, posinf=np.finfo(np.float64).max)
    return {"variance": auroc(sd**2, wrong), "sd_over_margin": auroc(ratio, wrong), "margin": auroc(-size, wrong)}


@dataclass(frozen=True, slots=True)
class KnownErrors:
    """The variance against the true squared error, where the true reward is known.

    Args:
        completions: how many, of the reference policy.
        variance_cv: coefficient of variation of the moderated variance over them.
        prior_freedom: d₀ of that variance; None means infinite: no difference beyond chance.
        spearman: rank correlation of the variance with the true squared error.
        mean_correlation, member_correlation: Pearson's of the members' mean, and of member 0, with the truth.
    """

    completions: int
    variance_cv: float
    prior_freedom: float | None
    spearman: Interval
    mean_correlation: float
    member_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; unknown figures are None."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def known_errors(
    source: RewardSource,
    scores: Float[Tensor, "batch columns"],
    truth: Float[Tensor, "batch"],
    groups: Int[Tensor, "batch"],
) -> KnownErrors:
    """Compare the source's variance with its true squared error; calibrates it on these rows.

    The error is (a·μ̄ − t̄)², μ̄ the reward and t̄ the truth, both centred per prompt, a the scale that fits best (the
    scale of a reward model is arbitrary). The reference policy drew the completions, so a prompt's are its anchor.

    Args:
        scores: (batch, columns) of `source.score`. truth: (batch,) true rewards. groups: (batch,) prompt ids.
    """
    anchors = group_anchors(scores, groups)
    calibration = source.calibrate(scores, anchors)
    estimate = source.estimate(scores, anchors)
    true, mean = (_centred(values, groups) for values in (truth, estimate.mean))
    first_member = mean if estimate.members is None else _centred(estimate.members[:, 0], groups)
    scale = (mean * true).sum() / mean.square().sum()
    freedom = calibration.prior.degrees_of_freedom if calibration.prior is not None else math.inf
    return KnownErrors(
        completions=len(true),
        variance_cv=calibration.notes["weight_cv"],
        prior_freedom=None if math.isinf(freedom) else freedom,
        spearman=spearman(estimate.variance.numpy(), (scale * mean - true).square().numpy()),
        mean_correlation=float(torch.corrcoef(torch.stack([mean, true]))[0, 1]),
        member_correlation=float(torch.corrcoef(torch.stack([first_member, true]))[0, 1]),
    )


def _centred(values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    column = values.double()[:, None]
    return (column - ensemble.group_means(column, groups))[:, 0]


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _on_offsets(disagreement: Disagreement) -> str:
    if math.isnan(disagreement.offset_per_prompt):
        return "The share of the raw variance that is a constant per member and prompt is unknown."
    return (
        f"{max(0.0, disagreement.offset_per_prompt):.0%} of the raw variance is a constant per member and prompt. "
        "Preferences don't determine it, so surefoot subtracts it before the variance is taken."
    )


def _on_heterogeneity(disagreement: Disagreement) -> str:
    if disagreement.prior_freedom is None or disagreement.variance_cv < 0.1:
        return (
            "The variance doesn't differ between pairs beyond chance, so weighting by it is much like the mean of the "
            "members. Bootstrap or a prior function, more or other data, or members of another kind may change that."
        )
    return (
        f"The variance differs between pairs (coefficient of variation {disagreement.variance_cv:.2f}, prior degrees "
        f"of freedom {disagreement.prior_freedom:.1f}), which weighting by it needs."
    )


def _on_errors(disagreement: Disagreement) -> str:
    variance, baseline = disagreement.error_auroc["variance"], disagreement.error_auroc["margin"]
    if math.isnan(variance.value):
        return "Whether the variance predicts errors is unknown: the mean ranked all pairs rightly, or all wrongly."
    informative = variance.low > 0.5
    return (
        f"The variance {'predicts' if informative else 'does not predict'} which pairs the mean ranks wrongly"
        f"{'' if informative else ', beyond chance'}: AUROC {variance.value:.2f} [{variance.low:.2f}, "
        f"{variance.high:.2f}], of −|margin| alone {baseline.value:.2f}."
    )
