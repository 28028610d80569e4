"""Compute the sections of a diagnosis from arrays of scores; intervals are of 95%."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.maths.ensemble import fit_variance_factor
from surefoot.metrics.calibration import (
    brier,
    choice_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
    negative_log_likelihood_of_margins,
    reliability_curve,
)
from surefoot.metrics.intervals import Interval, auroc, spearman, wilson
from surefoot.metrics.variance import (
    auroc_difference,
    coefficient_of_variation,
    length_correlation,
    risk_coverage,
)

__all__ = [
    "Calibrated",
    "FarKind",
    "Heterogeneity",
    "KnownTruth",
    "MarginCalibration",
    "Usefulness",
    "far_kind",
    "heterogeneity",
    "known_truth",
    "margin_calibration",
    "plain",
    "style_correlations",
    "usefulness",
]

Floats = NDArray[np.float64]
BINS = 10


def plain(value: Any) -> Any:
    """JSON values of sections and intervals; an unknown figure is None."""
    if isinstance(value, Interval):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How well probabilities of the labels fit them: mean −ln p and (1 − p)², and ECE over ten bins of equal mass."""

    nll: Interval
    brier: Interval
    ece: float
    curve: list[tuple[float, Interval]]


@dataclass(frozen=True, slots=True)
class MarginCalibration:
    """Calibration of the margins, with ever more taken into account.

    Args:
        mean: p = σ(m̄), the mean margin alone.
        members: p = mean over members of σ(m_k), paired per member; None without members.
        nll_of_members: each member's own σ(m_k).
        variance: p = E[σ(m̄ + s z)], the variance as the source gives it.
        fitted: the same with the variance times a factor fitted on the other half of the items.
        factor: the factor that fits all items best.
    """

    mean: Calibrated
    members: Calibrated | None
    nll_of_members: list[float]
    variance: Calibrated
    fitted: Calibrated
    factor: float


def margin_calibration(margin: Floats, variance: Floats, members: Floats | None, items: Any) -> MarginCalibration:
    """Measure how well the margins' probabilities fit the labels; the variance's factor is cross-fitted by item.

    Args:
        margin, variance: (pairs,) of the mean. members: (pairs, members) or None.
        items: (pairs,) which item a pair is of.
    """
    fitted = np.empty_like(margin)
    half = items % 2 == 0
    for mine, others in ((half, ~half), (~half, half)):
        fitted[mine] = choice_probabilities(margin[mine], variance[mine], _factor(margin[others], variance[others]))
    own = [] if members is None else list(members.T)
    average = None if members is None else np.mean([choice_probabilities(m) for m in own], axis=0)
    return MarginCalibration(
        mean=_calibrated(choice_probabilities(margin), negative_log_likelihood_of_margins(margin)),
        members=None if average is None else _calibrated(average),
        nll_of_members=[negative_log_likelihood_of_margins(m).value for m in own],
        variance=_calibrated(
            choice_probabilities(margin, variance), negative_log_likelihood_of_margins(margin, variance)
        ),
        fitted=_calibrated(fitted),
        factor=_factor(margin, variance),
    )


def _factor(margin: Floats, variance: Floats) -> float:
    return fit_variance_factor(torch.from_numpy(margin), torch.from_numpy(variance)) if len(margin) else 1.0


def _calibrated(p: Floats, nll: Interval | None = None) -> Calibrated:
    """`nll` where it is known from the margins, which stay finite where probabilities end."""
    curve = reliability_curve(p, BINS)
    return Calibrated(
        nll=negative_log_likelihood(p) if nll is None else nll,
        brier=brier(p),
        ece=expected_calibration_error(p, BINS),
        curve=list(zip(curve.confidence, curve.accuracy, strict=True)),
    )


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Whether the variance differs between completions: what weighting has to work with.

    Args:
        completions: how many.
        anchors: share of the completions that each kind of anchor centred: "reference" of an anchor file; "dataset"
            or, of a policy's completions, "group", those of the prompt, where prompts have three or more (two mirror
            each other once centred); else "calibration", the mean over all texts. Empty if nothing is centred.
        reliability: of the variance, 1 for a closed form; None where it is unknown (fewer than four members).
        prior_freedom: d₀; None means infinite (no difference beyond chance), or a source without members.
        has_prior: whether the variance is that of members, and so has a prior; a smoothed one has none.
        variation: of the weights: over all completions, within prompts, and over prompts' means.
        at_floor, at_ceiling: share of the weights there, at the trainers' default bounds.
        effective_share: (Σw)²/(n Σw²).
    """

    completions: int
    anchors: dict[str, float]
    reliability: float | None
    prior_freedom: float | None
    has_prior: bool
    variation: float
    variation_within: float
    variation_between: float
    at_floor: float
    at_ceiling: float
    effective_share: float


def heterogeneity(
    variance: Floats,
    prompts: Any,
    *,
    floor: float,
    ceiling: float,
    freedom: float | None,
    anchors: dict[str, float],
    reliability: float | None = None,
) -> Heterogeneity:
    """Measure how far the variance, and the weights made of it, differ between completions.

    Args:
        variance: (rows,) as the trainers would see it. prompts: (rows,) integers, equal for equal prompts.
        freedom: d₀, infinite if there is no difference, None for a variance that has no prior.
    """
    known = ~np.isnan(variance)
    weight = np.clip(variance[known] / variance[known].mean(), floor, ceiling)
    variation = coefficient_of_variation(weight, prompts[known])
    return Heterogeneity(
        completions=int(known.sum()),
        anchors=anchors,
        reliability=reliability,
        prior_freedom=None if freedom is None or math.isinf(freedom) else freedom,
        has_prior=freedom is not None,
        variation=variation.overall,
        variation_within=variation.within,
        variation_between=variation.between,
        at_floor=float((weight <= floor).mean()),
        at_ceiling=float((weight >= ceiling).mean()),
        effective_share=float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),
    )


@dataclass(frozen=True, slots=True)
class Usefulness:
    """Whether an uncertainty ranks the mean's mistakes before its successes.

    Args:
        auroc: of the margin's variance, of its sd over |margin|, and of −|margin| alone, the baseline to beat.
        above_baseline: variance and sd over |margin|, less the baseline, on the same pairs.
        coverage: of each: risk at coverage, thinned for drawing, and the area under it.
        random_area, best_area: of an uncertainty that knows nothing, and of one that knows the mistakes.
    """

    auroc: dict[str, Interval]
    above_baseline: dict[str, Interval]
    coverage: dict[str, dict[str, Any]]
    random_area: float
    best_area: float


def usefulness(margin: Floats, variance: Floats) -> Usefulness:
    """Measure how well the variance ranks the mean's mistakes before its successes.

    Args:
        margin, variance: (pairs,) of the mean; a margin of 0 is a mistake.
    """
    wrong, sd, size = margin <= 0, np.sqrt(variance), np.abs(margin)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(sd / size, posinf=np.finfo(np.float64).max)
    ways = {"variance": variance, "sd_over_margin": ratio, "margin": -size}
    curves = {name: risk_coverage(values, wrong) for name, values in ways.items()}
    some = curves["margin"]
    return Usefulness(
        auroc={name: auroc(values, wrong) for name, values in ways.items()},
        above_baseline={
            name: auroc_difference(ways[name], ways["margin"], wrong) for name in ("variance", "sd_over_margin")
        },
        coverage={name: _drawn(curve) for name, curve in curves.items()},
        random_area=some.random_area,
        best_area=some.best_area,
    )


def _drawn(curve: Any) -> dict[str, Any]:
    thin = curve.thinned(120)
    return {"area": curve.area, "coverage": thin.coverage.tolist(), "risk": thin.risk.tolist()}


@dataclass(frozen=True, slots=True)
class FarKind:
    """One kind of far text against the ordinary completions that it was made of.

    Args:
        label: the kind in words.
        auroc: of the variance, far against near: near 1, the source knows.
        mean: their mean reward, less that of the ordinary ones, in the ordinary ones' standard deviations.
        preferred: share of far texts whose reward is above that of the text they were made of: is it fooled?
    """

    label: str
    auroc: Interval
    mean: float
    preferred: Interval


def far_kind(label: str, near: tuple[Floats, Floats], far: tuple[Floats, Floats]) -> FarKind:
    """Compare reward and variance of far texts with those of the texts that they were made of.

    Args:
        near, far: (mean, variance), each (texts,), text by text, centred alike.
    """
    known = [~np.isnan(mean + variance) for mean, variance in (near, far)]
    values = np.concatenate([near[1][known[0]], far[1][known[1]]])
    labels = np.repeat([False, True], [int(known[0].sum()), int(known[1].sum())])
    middle, spread = float(np.nanmean(near[0])), float(np.nanstd(near[0], ddof=1))
    both = known[0] & known[1]
    return FarKind(
        label=label,
        auroc=auroc(values, labels),
        mean=(float(np.nanmean(far[0])) - middle) / spread if spread > 0 else math.nan,
        preferred=wilson(int((far[0][both] > near[0][both]).sum()), int(both.sum())),
    )


@dataclass(frozen=True, slots=True)
class KnownTruth:
    """The variance against the true squared error, where the truth is known.

    Args:
        completions: how many.
        correlation: Pearson's of the mean reward with the truth, both centred per prompt.
        spearman: of the variance with (a·mean − truth)², a the scale that fits best.
    """

    completions: int
    correlation: float
    spearman: Interval


def known_truth(mean: Floats, variance: Floats, truth: Floats, prompts: Any) -> KnownTruth:
    """Compare the variance with the true squared error of the mean.

    Args:
        mean, variance, truth: (rows,). prompts: (rows,) integers; rewards are compared within a prompt.
    """
    known = ~np.isnan(mean + variance + truth)
    mean, variance, truth, prompts = mean[known], variance[known], truth[known], prompts[known]
    _, index = np.unique(prompts, return_inverse=True)
    counts = np.bincount(index)
    x, t = (values - (np.bincount(index, values) / counts)[index] for values in (mean, truth))
    scale = float((x * t).sum() / (x * x).sum()) if (x * x).sum() > 0 else 0.0
    return KnownTruth(
        completions=len(x),
        correlation=float(np.corrcoef(x, t)[0, 1]) if x.std() > 0 and t.std() > 0 else math.nan,
        spearman=spearman(variance, (scale * x - t) ** 2),
    )


def style_correlations(
    features: dict[str, Floats], mean: Floats, variance: Floats, prompts: Any
) -> dict[str, dict[str, Interval]]:
    """Spearman's of reward and of variance with each feature, both centred within a prompt."""
    return {
        name: {
            "reward": length_correlation(mean, values, prompts),
            "variance": length_correlation(variance, values),
        }
        for name, values in features.items()
    }
