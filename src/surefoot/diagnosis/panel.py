"""Diagnose a panel of judges: who agrees with whom, how reliable each is, and what only other families can see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.feedback.agreement import cohen_kappa, fleiss_kappa
from surefoot.metrics.intervals import Interval
from surefoot.rewards.anchored import calibrate_anchored, merged_anchors
from surefoot.rewards.kinds.panel.reliability import weigh
from surefoot.rewards.kinds.panel.source import PanelSource
from surefoot.types import Anchors

__all__ = ["Agreement", "JudgeFigures", "Panel", "panel_figures"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_DRAWS = 500
_CHUNK = 250
"""Draws at once: an array of draws by prompts."""
_VALUES = 3
"""A judge's verdict on a pair: 0 for the rejected side, 1 for equal ratings, 2 for the chosen side."""


@dataclass(frozen=True, slots=True)
class JudgeFigures:
    """One judge.

    Args:
        weight: of its rating in the reward, measured here.
        reliability: share of its variance, noise included, that other families share; None with two families.
        scale: its standard deviation within prompts, noise taken out; offset: its mean. Both in its own ratings.
    """

    name: str
    family: str
    weight: float
    reliability: Interval
    scale: float
    offset: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of judges on pairs that all of them rated.

    Args:
        judges: their names.
        same_family: whether they are of one family.
        sides: κ of the preferred side, equal ratings a value of their own; each pair counts in both orders, so that
            which side stands first doesn't matter.
        mistakes: κ of right, equal and wrong by the labels: above 0 where they err on the same pairs.
    """

    judges: list[str]
    same_family: bool
    sides: Interval
    mistakes: Interval


@dataclass(frozen=True, slots=True)
class Panel:
    """Figures of a panel; intervals by bootstrap over prompts.

    Args:
        judges: each of them.
        pairs_of_judges: Cohen's κ of each two.
        together: Fleiss' κ of all.
        between, within: mean variance of the reward by what families make of a completion (of their weighted mean,
            unbiased), and by the noise of replies and wordings; None where the noise is unknown.
        between_share: share of the first in both.
    """

    judges: list[JudgeFigures]
    pairs_of_judges: list[Agreement]
    together: Agreement
    between: float
    within: float
    between_share: Interval


def panel_figures(
    source: PanelSource,
    rows: Tensor,
    pairs: tuple[Integers, Integers],
    prompts: Integers,
    choices: list[Anchors],
) -> Panel:
    """Measure a panel on pairs, calibrated on these rows; its own calibration is put back.

    Args:
        rows: (rows, columns) scored. pairs: (pairs,) rows of the chosen and of the rejected sides.
        prompts: (rows,) integers, equal for equal prompts.
        choices: anchors, of which each row takes the first that is known.
    """
    held = source.calibration
    try:
        calibrate_anchored(source, rows, choices)
        anchors = merged_anchors(source, choices)
        judges = _judges(source, rows, anchors, prompts)
        between, within, share = _variances(source, rows, anchors, prompts)
        ratings = source.members_of(rows).numpy()
    finally:
        source.calibration = held
    chosen, rejected = pairs
    margins = ratings[chosen] - ratings[rejected]
    verdicts = np.where(np.isnan(margins), -1, np.sign(np.nan_to_num(margins)) + 1).astype(np.int64)
    names = [judge.name for judge in judges]
    some = list(combinations(range(len(names)), 2))
    apart = [
        _agreement(
            [names[a], names[b]], source.families[a] == source.families[b], verdicts[:, [a, b]], prompts[chosen]
        )
        for a, b in some
    ]
    together = _agreement(names, False, verdicts, prompts[chosen])
    return Panel(judges, apart, together, between, within, share)


def _judges(source: PanelSource, rows: Tensor, anchors: Anchors, prompts: Integers) -> list[JudgeFigures]:
    rewards = source.judged(rows, anchors).rewards
    whole = ~rewards.isnan().any(dim=1)
    x = rewards[whole].numpy()
    count = x.shape[1]

    def reliability(sums: Floats) -> Floats:
        """Of sums of (1, x, xxᵀ) over rows."""
        n, first = sums[..., :1], sums[..., 1 : 1 + count]
        second = sums[..., 1 + count :].reshape(*sums.shape[:-1], count, count)
        covariance = (second - first[..., :, None] * first[..., None, :] / n[..., None]) / (n[..., None] - 1)
        return weigh(torch.from_numpy(covariance), source.family_members).judges.numpy()

    statistics = np.concatenate([np.ones((len(x), 1)), x, (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)], axis=1)
    intervals = _bootstrapped(statistics, prompts[whole.numpy()], reliability)
    weights = source.reliabilities()["weight"]
    values = zip(source.judges, source.families, weights, intervals, source.scales, source.offsets, strict=True)
    return [JudgeFigures(judge.name, *figures) for judge, *figures in values]


def _variances(
    source: PanelSource, rows: Tensor, anchors: Anchors, prompts: Integers
) -> tuple[float, float, Interval]:
    """Mean variance of the reward between families and within them, and the share of the first."""
    parts = source.components(rows, anchors)
    both = torch.stack([parts.share * parts.between, parts.within], dim=1).numpy()
    known = ~np.isnan(both).any(axis=1)
    if not known.any():
        return math.nan, math.nan, Interval(math.nan, math.nan, math.nan, 0)
    between, within = both[known].mean(axis=0).tolist()
    with np.errstate(divide="ignore", invalid="ignore"):
        [share] = _bootstrapped(both[known], prompts[known], lambda sums: sums[..., :1] / sums.sum(axis=-1)[..., None])
    return between, within, share


def _agreement(names: list[str], same_family: bool, verdicts: Integers, prompts: Integers) -> Agreement:
    """Cohen's κ for two judges, Fleiss' for more.

    Args:
        verdicts: (pairs, judges) −1 where a judge left a side unscored. prompts: (pairs,) integers.
    """
    whole = (verdicts >= 0).all(axis=1)
    values = np.eye(_VALUES)[verdicts[whole]]
    kappa = cohen_kappa if len(names) == 2 else fleiss_kappa
    tables = sum(values[:, a, :, None] * values[:, b, None, :] for a, b in combinations(range(len(names)), 2))

    def mistakes(sums: Floats) -> Floats:
        return kappa(sums.reshape(*sums.shape[:-1], _VALUES, _VALUES))[..., None]

    def sides(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], _VALUES, _VALUES)
        return kappa(table + table[..., ::-1, ::-1])[..., None]

    statistics = np.asarray(tables).reshape(len(values), -1)
    intervals = [_bootstrapped(statistics, prompts[whole], each)[0] for each in (sides, mistakes)]
    return Agreement(names, same_family, *intervals)


def _bootstrapped(statistics: Floats, prompts: Integers, figures: Callable[[Floats], Floats]) -> list[Interval]:
    """95% percentile intervals of figures of sums, prompts drawn with replacement; NaN for fewer than two prompts.

    Args:
        statistics: (rows, statistics) that are summed. prompts: (rows,) integers.
        figures: from (..., statistics) sums to (..., figures).
    """
    _, place = np.unique(prompts, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    by_prompt = np.zeros((count, statistics.shape[1]))
    np.add.at(by_prompt, place, statistics)
    values = figures(by_prompt.sum(axis=0))
    if count < 2:
        return [Interval(float(value), math.nan, math.nan, len(place)) for value in values]
    stream = np.random.default_rng(0)
    chances = np.full(count, 1 / count)
    drawn = np.concatenate(
        [figures(stream.multinomial(count, chances, size=_CHUNK) @ by_prompt) for _ in range(_DRAWS // _CHUNK)]
    )
    return [_interval(float(value), drawn[:, i], len(place)) for i, value in enumerate(values)]


def _interval(value: float, draws: Any, n: int) -> Interval:
    known = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(known):
        return Interval(value, math.nan, math.nan, n)
    low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return Interval(value, low, high, n)
