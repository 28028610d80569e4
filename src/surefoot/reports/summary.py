"""Sum up a study: each method in each group, and its differences to the baseline and to the mean of members."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surefoot.metrics.intervals import (
    Interval,
    bootstrap_mean,
    brown_forsythe,
    lower_tail,
    risk,
    sign_test,
    spread,
)
from surefoot.metrics.runs import detectable_difference, detectable_risk_difference, holm
from surefoot.reports.paths import gains_at, gaps, level_of, settled_gains
from surefoot.reports.prompts import anchor_of, completions_of_a_prompt, paired_prompt_risk, risk_of_prompts
from surefoot.reports.records import Group, Study, label_of
from surefoot.run_records import CellMetrics

__all__ = ["ALPHA", "MEAN", "Comparison", "Cost", "MethodSummary", "summarise", "summarise_group", "summary_rows"]

ALPHA = 0.05
MEAN = "mean"
BySeed = dict[int, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method's gains minus another's at the same seeds.

    Args:
        difference: mean with its bootstrap interval; above 0 the method is better.
        wins, losses: seeds at which it was better, and worse.
        p: exact two-sided sign test. p_holm: adjusted over the methods of the group.
        detectable: smallest mean difference that so many pairs would find with 80% power.
    """

    difference: Interval
    wins: int
    losses: int
    p: float
    p_holm: float
    detectable: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the adjusted sign test and the interval both tell it from nothing, in the same direction."""
        low, high = self.difference.low, self.difference.high
        return self.p_holm < ALPHA and (
            (low > 0 and self.wins > self.losses) or (high < 0 and self.losses > self.wins)
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Means over runs; CPU seconds of policy run and reward source, and their sum against the baseline's."""

    policy_cpu: float
    source_cpu: float
    ratio: float
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over the runs of one group; gains are in true reward over the reference policy.

    Args:
        runs: finished runs; `risk.n` of them have a true reward.
        risk_p: exact McNemar test of the risk against the baseline's, paired by seed.
        risk_detectable: by how much the risk would have to fall below the baseline's to be found; NaN: no fall would.
        prompt_risk: share of evaluation prompts on which the final policy is worse than the reference, over runs and
            prompts; unknown where the records don't hold the prompts' gains.
        paired_prompt_risk: the same minus the baseline's at the same seeds and prompts.
        prompt_completions: fresh completions of a prompt, in the median.
        anchor, anchor_completions: what variances were centred by (`surefoot.types.ANCHOR_KINDS`); None where the
            records don't tell.
        paired, to_mean: gains at the end against the baseline's and the ensemble mean's; unknown for itself.
        level: the KL of the comparison at matched KL, with the gain there and its differences, where runs first
            reach it.
        settled: gain at equal KL once runs have settled (`paths.SETTLED`), with its differences.
        gap: over-optimisation gap.
    """

    setting: str
    source: str
    kl_budget: float | None
    method: str
    label: str
    is_baseline: bool
    runs: int
    risk: Interval
    risk_p: float
    risk_detectable: float
    prompt_risk: Interval
    paired_prompt_risk: Interval
    prompt_completions: int | None
    anchor: str | None
    anchor_completions: int | None
    gain: Interval
    spread: float
    spread_p: float
    worst: float
    kl: float
    gap: Interval
    paired: Comparison
    to_mean: Comparison
    level: float
    matched: Interval
    matched_paired: Comparison
    matched_to_mean: Comparison
    settled: Interval
    settled_paired: Comparison
    settled_to_mean: Comparison
    cost: Cost


def summarise(study: Study) -> list[MethodSummary]:
    """Every method of every group, in the study's order; bootstraps are seeded, so a report is reproducible."""
    return [summary for group in study.groups for summary in summarise_group(group)]


def summarise_group(group: Group) -> list[MethodSummary]:
    """Summaries of the methods that have a finished run, with Holm's correction over them."""
    level = level_of(group)
    ends = {method: group.by_seed(method, _gain) for method in group.finished_methods}
    at_level = {method: gains_at(group, method, level) for method in group.finished_methods}
    late = {method: settled_gains(group, method) for method in group.finished_methods}
    return _adjusted([_summary(group, method, level, ends, at_level, late) for method in group.finished_methods])


def _summary(
    group: Group,
    method: str,
    level: float,
    ends: dict[str, BySeed],
    at_level: dict[str, BySeed],
    late: dict[str, BySeed],
) -> MethodSummary:
    gains, baseline = list(ends[method].values()), list(ends.get(group.baseline, {}).values())
    itself = method == group.baseline
    reference = risk(baseline)
    anchor, anchor_completions = anchor_of(group, method)
    return MethodSummary(
        *group.place,
        method=method,
        label=label_of(method),
        is_baseline=itself,
        runs=len(gains),
        risk=risk(gains),
        risk_p=math.nan if itself else _risk_test(ends[method], ends.get(group.baseline, {})),
        risk_detectable=math.nan if itself else detectable_risk_difference(reference.value, risk(gains).n),
        prompt_risk=risk_of_prompts(group, method),
        paired_prompt_risk=paired_prompt_risk(group, method),
        prompt_completions=completions_of_a_prompt(group),
        anchor=anchor,
        anchor_completions=anchor_completions,
        gain=_bootstrap(gains),
        spread=spread(gains),
        spread_p=math.nan if itself else brown_forsythe(gains, baseline),
        worst=lower_tail(gains),
        kl=_mean(group.by_seed(method, lambda metrics: metrics.kl_final).values()),
        gap=_bootstrap(gaps(group, method)),
        paired=_compare(ends, method, group.baseline),
        to_mean=_compare(ends, method, MEAN),
        level=level,
        matched=_bootstrap(list(at_level[method].values())),
        matched_paired=_compare(at_level, method, group.baseline),
        matched_to_mean=_compare(at_level, method, MEAN),
        settled=_bootstrap(list(late[method].values())),
        settled_paired=_compare(late, method, group.baseline),
        settled_to_mean=_compare(late, method, MEAN),
        cost=_cost(group, method),
    )


def _compare(values: dict[str, BySeed], method: str, other: str) -> Comparison:
    """Gains minus the other method's; unknown for the method itself and against a method without runs."""
    differences = [] if method == other else _differences(values[method], values.get(other, {}))
    return Comparison(
        _bootstrap(differences),
        sum(each > 0 for each in differences),
        sum(each < 0 for each in differences),
        sign_test(differences),
        math.nan,
        detectable_difference(differences),
    )


def _differences(mine: BySeed, theirs: BySeed) -> list[float]:
    return [value - theirs[seed] for seed, value in mine.items() if seed in theirs]


def _risk_test(mine: BySeed, theirs: BySeed) -> float:
    """McNemar's exact test that both methods end below the reference equally often, paired by seed."""
    pairs = [(a, theirs[seed]) for seed, a in mine.items() if seed in theirs]
    known = [(a, b) for a, b in pairs if not math.isnan(a + b)]
    p = sign_test([float(b < 0) - float(a < 0) for a, b in known])
    return 1.0 if known and math.isnan(p) else p


_FAMILIES = ("paired", "to_mean", "matched_paired", "matched_to_mean", "settled_paired", "settled_to_mean")


def _adjusted(summaries: list[MethodSummary]) -> list[MethodSummary]:
    for name in _FAMILIES:
        adjusted = holm([getattr(each, name).p for each in summaries])
        summaries = [
            replace(each, **{name: replace(getattr(each, name), p_holm=float(p))})
            for each, p in zip(summaries, adjusted, strict=True)
        ]
    return summaries


def _cost(group: Group, method: str) -> Cost:
    policy, source = group.by_seed(method, _policy_cpu), group.by_seed(method, _source_cpu)
    total, other = _total(group, method), _total(group, group.baseline)
    shared = [seed for seed in total if not math.isnan(total[seed] + other.get(seed, math.nan))]
    below = sum(other[seed] for seed in shared)
    return Cost(
        _mean(policy.values()),
        _mean(source.values()),
        sum(total[seed] for seed in shared) / below if below > 0 else math.nan,
        _mean(group.by_seed(method, lambda metrics: metrics.seconds).values()),
        _mean(group.by_seed(method, lambda metrics: metrics.peak_memory_mb).values()),
    )


def _total(group: Group, method: str) -> BySeed:
    source = group.by_seed(method, _source_cpu)
    return {seed: own + source[seed] for seed, own in group.by_seed(method, _policy_cpu).items()}


def _gain(metrics: CellMetrics) -> float | None:
    return metrics.gold_gain


def _policy_cpu(metrics: CellMetrics) -> float | None:
    return metrics.cpu_seconds


def _source_cpu(metrics: CellMetrics) -> float | None:
    return metrics.source_cpu_seconds


def _bootstrap(values: list[float]) -> Interval:
    return bootstrap_mean(values, np.random.default_rng(0))


def _mean(values: Iterable[float]) -> float:
    known_values = [value for value in values if not math.isnan(value)]
    return sum(known_values) / len(known_values) if known_values else math.nan


def summary_rows(summaries: list[MethodSummary]) -> list[dict[str, Any]]:
    """One flat row of plain values for each summary, for JSON and CSV; NaN is written as None."""
    return [{name: _plain(value) for name, value in _row(summary).items()} for summary in summaries]


def _row(summary: MethodSummary) -> dict[str, Any]:
    return {
        "setting": summary.setting,
        "source": summary.source,
        "method": summary.method,
        "kl_budget": summary.kl_budget,
        "n": summary.risk.n,
        "runs": summary.runs,
        **_interval("risk", summary.risk),
        "risk_p": summary.risk_p,
        "risk_detectable": summary.risk_detectable,
        **_interval("prompt_risk", summary.prompt_risk),
        **_interval("paired_prompt_risk", summary.paired_prompt_risk),
        "prompt_completions": summary.prompt_completions,
        "anchor": summary.anchor,
        "anchor_completions": summary.anchor_completions,
        "spread": summary.spread,
        "spread_p": summary.spread_p,
        **_interval("gain", summary.gain),
        "kl": summary.kl,
        "worst": summary.worst,
        **_interval("over_optimisation_gap", summary.gap),
        **_comparison("paired_gain", summary.paired),
        **_comparison("gain_over_mean", summary.to_mean),
        "matched_kl": summary.level,
        "matched_n": summary.matched.n,
        **_interval("gain_at_matched_kl", summary.matched),
        **_comparison("paired_gain_at_matched_kl", summary.matched_paired),
        **_comparison("gain_over_mean_at_matched_kl", summary.matched_to_mean),
        "settled_n": summary.settled.n,
        **_interval("gain_settled", summary.settled),
        **_comparison("paired_gain_settled", summary.settled_paired),
        **_comparison("gain_over_mean_settled", summary.settled_to_mean),
        "policy_cpu_seconds": summary.cost.policy_cpu,
        "source_cpu_seconds": summary.cost.source_cpu,
        "cpu_ratio": summary.cost.ratio,
        "peak_memory_mb": summary.cost.peak_memory_mb,
    }


def _interval(name: str, estimate: Interval) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _comparison(name: str, comparison: Comparison) -> dict[str, float]:
    return _interval(name, comparison.difference) | {
        f"{name}_n": comparison.difference.n,
        f"{name}_p": comparison.p,
        f"{name}_p_holm": comparison.p_holm,
        f"{name}_detectable": comparison.detectable,
    }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
