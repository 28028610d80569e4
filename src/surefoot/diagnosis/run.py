"""Compute a diagnosis from scored rows; this runs no model, so that cached scores are diagnosed in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis import sections
from surefoot.diagnosis.card import compare_with_card
from surefoot.diagnosis.data_seen import look_up
from surefoot.diagnosis.disagreement import disagreement_of_scores, member_scores
from surefoot.diagnosis.panel import panel_figures
from surefoot.diagnosis.rewardbench import benchmark_scores
from surefoot.diagnosis.scored import ScoredComparisons
from surefoot.diagnosis.style import STYLE_FEATURES, plain_text
from surefoot.diagnosis.verdict import RULES, judge, named
from surefoot.errors import DataError, VarianceError
from surefoot.maths.objectives import Objective
from surefoot.metrics.intervals import Interval, wilson
from surefoot.metrics.variance import effective_members, split_sizes
from surefoot.rewards.anchored import anchor_shares, calibrate_anchored, estimate_anchored
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.panel.source import PanelSource
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.types import AnchorKind, Anchors, Calibration, RewardEstimate, Text

__all__ = ["check_source", "diagnose", "mean_rewards"]

EXAMPLES = 8
"""Pairs shown side by side, those on which the members disagree most."""

Floats = NDArray[np.float64]


def check_source(source: RewardSource) -> None:
    """Refuse a source that can't have a variance, before anything is scored.

    Raises:
        VarianceError: it has one member.
    """
    if source.num_members == 1:
        raise VarianceError(
            f"'{source.name}' has one member, and one member can't disagree; give at least two, or a variance for the "
            "one you have (`surefoot reward --kind laplace`)"
        )


def diagnose(
    source: RewardSource,
    comparisons: Comparisons,
    scored: ScoredComparisons,
    *,
    samples: tuple[Float[Tensor, "rows columns"], list[Any], Floats | None] | None = None,
    anchors: AnchorStore | None = None,
    left_out: int = 0,
) -> dict[str, Any]:
    """Everything `surefoot diagnose` reports, as plain JSON values with a verdict.

    Args:
        samples: scored rows, prompts and perhaps true rewards of other completions, such as the reference policy's;
            where given, heterogeneity and reliability are measured on them, as a trainer would see it.
        anchors: of `surefoot anchors`; variances are centred by them where they have the prompt.
        left_out: how many pairs `keep_held_out` left out.

    Raises:
        VarianceError: the source has one member. DataError: fewer than two pairs were scored.
    """
    check_source(source)
    chosen, rejected, items = comparisons.pairs()
    margins = source.margins(scored.rows[chosen], scored.rows[rejected])
    mean, variance = (values.double().numpy() for values in (margins.mean, margins.variance))
    known = ~np.isnan(mean + variance)
    if known.sum() < 2:
        raise DataError(f"only {int(known.sum())} of {len(mean)} pairs were scored; at least two are needed")
    scores = member_scores(source, scored.rows)
    members = None if scores is None else scores.numpy()
    of_members = None if members is None else (members[chosen] - members[rejected])[known]
    prompts = _numbered(comparisons.prompts, comparisons.items)
    choices = _choices(scored.rows, comparisons.prompts, prompts, anchors, "dataset")
    with _calibrated_here(source, scored.rows, choices) as (estimate, calibration):
        reward, spread = estimate.mean.numpy(), estimate.variance.numpy()
    sections_by_name: dict[str, Any] = {
        "source": source.name,
        "data": look_up(comparisons, source.training_pairs, left_out).to_dict(),
        "format": comparisons.format,
        "items": len(comparisons),
        "pairs": int(known.sum()),
        "unscored_pairs": int((~known).sum()),
        "members": source.num_members,
        "accuracy": _accuracy(comparisons, mean_rewards(source, scored.rows), mean[known], of_members, items[known]),
        "disagreement": None if members is None else _disagreement(members[chosen], members[rejected]),
        "calibration": sections.margin_calibration(mean[known], variance[known], of_members, items[known]),
        "usefulness": sections.usefulness(mean[known], variance[known]),
        "far": _far(source, comparisons, scored, anchors),
        "style": sections.style_correlations(_features(comparisons.completions), reward, spread, prompts),
        "examples": _examples(comparisons, chosen, rejected, mean, variance, members),
    }
    if isinstance(source, PanelSource):
        of_prompt = group_anchors(scored.rows, torch.from_numpy(prompts), "dataset")
        near = [
            *([] if anchors is None else [anchors.where_known(comparisons.prompts, source.num_columns)]),
            of_prompt,
        ]
        sections_by_name["panel"] = panel_figures(source, scored.rows, (chosen, rejected), prompts, near)
    if samples is None:
        sections_by_name["heterogeneity"] = _heterogeneity(estimate, prompts, calibration)
        sections_by_name["known_truth"] = None
    else:
        sections_by_name |= _of_samples(source, *samples, anchors)
    sections_by_name = {name: sections.plain(value) for name, value in sections_by_name.items()}
    sections_by_name["card"] = compare_with_card(source.calibration, sections_by_name, sampled=samples is not None)
    return sections_by_name | {"verdict": sections.plain(judge(sections_by_name)), "rules": dict(RULES)}


def mean_rewards(source: RewardSource, rows: Float[Tensor, "rows columns"]) -> Floats:
    """(rows,) one reward per completion: the members' mean, or the source's own reward."""
    values: Floats = source.reward_of(rows).numpy()
    return values


def _numbered(prompts: list[Text], items: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Integers, equal for equal prompts; an empty prompt, which says nothing, is told apart by its item."""
    keys = prompt_keys(prompts)
    if items is not None:
        keys = [key if prompt else f"item {i}" for key, prompt, i in zip(keys, prompts, items, strict=True)]
    _, numbers = np.unique(np.array(keys, dtype=object).astype(str), return_inverse=True)
    return numbers


@contextmanager
def _calibrated_here(
    source: RewardSource, rows: Tensor, choices: list[Anchors]
) -> Iterator[tuple[RewardEstimate, Calibration]]:
    """(estimate, calibration) with the source calibrated on these rows; its own calibration is put back.

    Args:
        choices: anchors, of which each row takes the first that is known; else the mean over these rows.
    """
    held = source.calibration
    try:
        calibration = calibrate_anchored(source, rows, choices)
        yield estimate_anchored(source, rows, choices), calibration
    finally:
        source.calibration = held


def _choices(
    rows: Tensor, prompts: list[Text], numbers: NDArray[np.int64], anchors: AnchorStore | None, kind: AnchorKind
) -> list[Anchors]:
    """Reference anchors, where they are given; then a prompt's own rows, where most prompts have three or more.

    Two completions of a prompt mirror each other once centred on their mean, so that no difference between them shows.
    """
    choices = [] if anchors is None else [anchors.where_known(prompts, rows.shape[1])]
    if bool((np.bincount(numbers) > 2).mean() > 0.5):
        choices.append(group_anchors(rows, torch.from_numpy(numbers), kind))
    return choices


def _heterogeneity(
    estimate: RewardEstimate, prompts: NDArray[np.int64], calibration: Calibration
) -> sections.Heterogeneity:
    usual = Objective()
    prior = None if calibration.variance_kind == "smoothed" else calibration.prior  # which smoothing doesn't read
    kinds = [kind for kind, scored in zip(estimate.anchor_kinds, estimate.scored.tolist(), strict=True) if scored]
    return sections.heterogeneity(
        estimate.variance.numpy(),
        prompts,
        floor=usual.weight_floor,
        ceiling=usual.weight_ceiling,
        freedom=None if prior is None else prior.degrees_of_freedom,
        anchors=anchor_shares(kinds),
        reliability=calibration.notes.get("reliability"),
    )


def _of_samples(
    source: RewardSource, rows: Tensor, prompts: list[Any], truth: Floats | None, anchors: AnchorStore | None
) -> dict[str, Any]:
    numbers = _numbered(prompts)
    with _calibrated_here(source, rows, _choices(rows, prompts, numbers, anchors, "group")) as (estimate, calibration):
        mean, variance = estimate.mean.numpy(), estimate.variance.numpy()
    known = None if truth is None else sections.known_truth(mean, variance, truth, numbers)
    return {"heterogeneity": _heterogeneity(estimate, numbers, calibration), "known_truth": known}


def _far(
    source: RewardSource, comparisons: Comparisons, scored: ScoredComparisons, anchors: AnchorStore | None
) -> dict[str, sections.FarKind]:
    """Set the variance of each far text against that of the right completion of its prompt, from one anchor.

    The anchor is the prompt's reference anchor where it is known, else a wrong completion of the prompt ("dataset").
    Either way it holds neither of the two texts, so that the far text doesn't move its own anchor, and what members
    add to all completions of a prompt cancels. An anchor that held the right completion, such as the mean of both
    ordinary ones, would take a share of its errors away: any far text would then look the more uncertain, by a factor
    of three where the members err alike on all texts ((1 + 1/2) s² against s²/2).
    """
    chosen, rejected, _ = comparisons.pairs()
    wrong = dict(zip(chosen.tolist(), rejected.tolist(), strict=True))
    beside = [wrong[row] for row in scored.far_rows.tolist()]
    other = scored.rows[beside].double().repeat(2, 1)
    choices = [Anchors(other, "dataset", other.new_ones(len(other)))]
    if anchors is not None:
        prompts = [comparisons.prompts[row] for row in scored.far_rows.tolist()]
        choices.insert(0, anchors.where_known([*prompts, *prompts], other.shape[1]))
    by_kind = {}
    for kind, rows in scored.far.items():
        with _calibrated_here(source, torch.cat([scored.rows[scored.far_rows], rows]), choices) as (estimate, _):
            mean, variance = (values.view(2, -1).numpy() for values in (estimate.mean, estimate.variance))
        by_kind[kind] = sections.far_kind(named(kind), (mean[0], variance[0]), (mean[1], variance[1]))
    return by_kind


def _accuracy(
    comparisons: Comparisons, shown: Floats, margin: Floats, members: Floats | None, items: NDArray[np.int64]
) -> dict[str, Any]:
    """Accuracy of the mean and of each member: over all pairs, by subset, and by the benchmark's own rules."""
    subsets = np.array(comparisons.subsets, dtype=object)[items]
    named = sorted({name for name in subsets if name})
    return {
        "overall": _share(margin > 0),
        "members": [] if members is None else [_share(column > 0) for column in members.T],
        "subsets": {
            name: {
                "mean": _share(margin[subsets == name] > 0),
                "members": math.nan if members is None else float((members[subsets == name] > 0).mean()),
                "split": math.nan if members is None else _split_share(members[subsets == name]),
            }
            for name in named
        },
        "benchmark": None if comparisons.format == "pairs" else benchmark_scores(comparisons, shown).to_dict(),
    }


def _split_share(members: Floats) -> float:
    wins = (members > 0).mean(axis=1)
    return float(((wins > 0) & (wins < 1)).mean())


def _share(hits: NDArray[np.bool_]) -> Interval:
    return wilson(int(hits.sum()), len(hits))


def _disagreement(chosen: Floats, rejected: Floats) -> dict[str, Any]:
    """The members' disagreement, with the effective number of them and how the minority's size is spread."""
    usable = ~np.isnan(chosen + rejected).any(axis=1)
    chosen, rejected = chosen[usable], rejected[usable]
    margins = chosen - rejected
    sd = margins.std(axis=1, ddof=1)
    edges = np.linspace(0, float(np.quantile(sd, 0.99)) or 1.0, 21)
    counts, _ = np.histogram(sd.clip(max=edges[-1]), edges)
    return disagreement_of_scores(torch.from_numpy(chosen), torch.from_numpy(rejected)).to_dict() | {
        "effective_members": effective_members(margins <= 0),
        "minority_sizes": split_sizes(margins),
        "scale_share": _scale_share(margins),
        "sd_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _scale_share(margins: Floats) -> float:
    """Share of the margins' variance over members that vanishes if each member is divided by its own spread."""
    scales = np.sqrt((margins**2).mean(axis=0))
    if not (scales > 0).all():
        return math.nan
    scaled = margins / scales * scales.mean()
    before = margins.var(axis=1, ddof=1).mean()
    return float(1 - scaled.var(axis=1, ddof=1).mean() / before) if before > 0 else math.nan


def _features(completions: Any) -> dict[str, Floats]:
    texts = [plain_text(completion) for completion in completions]
    return {name: np.array([count(text) for text in texts]) for name, count in STYLE_FEATURES.items()}


def _examples(
    comparisons: Comparisons,
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    mean: Floats,
    variance: Floats,
    members: Floats | None,
) -> list[dict[str, Any]]:
    """The pairs with the largest margin variance among those whose winner the members don't agree on."""
    order = np.argsort(-np.nan_to_num(variance, nan=-1.0), kind="stable")
    if members is not None:
        wins = ((members[chosen] - members[rejected]) > 0).mean(axis=1)
        split = (wins > 0) & (wins < 1)
        order = np.concatenate([order[split[order]], order[~split[order]]])
    return [
        {
            "prompt": plain_text(comparisons.prompts[chosen[i]]),
            "chosen": plain_text(comparisons.completions[chosen[i]]),
            "rejected": plain_text(comparisons.completions[rejected[i]]),
            "margin": float(mean[i]),
            "sd": math.sqrt(variance[i]),
            "members": [] if members is None else (members[chosen[i]] - members[rejected[i]]).tolist(),
        }
        for i in order[:EXAMPLES]
        if not math.isnan(mean[i] + variance[i])
    ]
