"""The tables of a study's page; each entry has its text and the value that it is sorted by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from surefoot.metrics.intervals import Interval
from surefoot.reports.paths import SETTLED
from surefoot.reports.records import Group, Study, label_of
from surefoot.reports.summary import MEAN, Comparison, MethodSummary
from surefoot.reports.wording import (
    UNKNOWN,
    budget,
    compact,
    counted,
    difference,
    interval,
    number,
    percent_interval,
    points,
    probability,
    times,
)
from surefoot.run_records import CellPlace

__all__ = ["Entry", "Table", "differences_table", "ends_table", "failures_table", "groups_table", "matched_table",
           "name_of", "price_table", "prompts_table", "settled_table"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table: what is read, and what it is sorted by (None: unknown, always last); prose may wrap."""

    text: str
    order: float | str | None = None
    strong: bool = False
    prose: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first entry of a row names it."""

    caption: str
    headings: list[str]
    rows: list[list[Entry]]


def name_of(place: tuple[str, str, float | None], study: Study) -> str:
    """A group by what tells it from the others of its study."""
    setting, source, kl_budget = place
    grid = study.grid
    axes = ((grid.settings, setting), (grid.sources, source), (grid.kl_budgets, budget(kl_budget)))
    return " · ".join(name for axis, name in axes if len(axis) > 1) or setting


def ends_table(summaries: list[MethodSummary]) -> Table:
    """Where the runs ended: risk, gain, spread and tail."""
    return Table(
        "Gains in true reward over the reference on fresh prompts, with 95% intervals: Wilson's for the risk, "
        "bootstrap for means. Risk p: exact McNemar test against the baseline; spread p: Brown–Forsythe. "
        "Gap: the best running mean of the true reward along a run minus its last one. "
        f"{_findable(summaries)}{_anchors(summaries)}",
        [
            "method",
            "runs",
            "ended below",
            "risk p",
            "mean gain",
            "spread (sd)",
            "spread p",
            "worst tenth",
            "KL",
            "gap",
        ],
        [
            [
                Entry(summary.label, summary.label),
                Entry(_runs(summary), summary.runs),
                Entry(percent_interval(summary.risk), _order(summary.risk.value)),
                _p(summary.risk_p),
                _interval(summary.gain),
                _number(summary.spread),
                _p(summary.spread_p),
                _number(summary.worst),
                _number(summary.kl, 1),
                _interval(summary.gap),
            ]
            for summary in summaries
        ],
    )


def prompts_table(summaries: list[MethodSummary]) -> Table:
    """On how many prompts the final policies are worse than the reference; dashes where the records don't tell."""
    count = next((summary.prompt_completions for summary in summaries if summary.prompt_completions), None)
    fresh = "fresh completions" if count is None else f"about {counted(count, 'fresh completion')} of each"
    return Table(
        "Worse prompts: the share of evaluation prompts that the final policy answers worse than the reference does, "
        f"by the mean true reward of {fresh}, over runs and prompts. Their interval, and that of the difference to "
        f"{_other(summaries, 'paired')} at the same seeds and prompts, resample both.",
        ["method", "runs", "worse prompts", "against the baseline, points"],
        [
            [
                Entry(summary.label, summary.label),
                Entry(str(summary.prompt_risk.n), summary.prompt_risk.n),
                _percent(summary.prompt_risk),
                Entry(points(summary.paired_prompt_risk), _order(summary.paired_prompt_risk.value)),
            ]
            for summary in summaries
        ],
    )


def differences_table(summaries: list[MethodSummary], name: str) -> Table | None:
    """Gains at the end against another method's, seed by seed; None if there is nothing to compare.

    Args:
        name: `paired` or `to_mean`.
    """
    return _comparisons(
        f"Mean gain at the end minus that of {_other(summaries, name)} at the same seed, with its bootstrap interval. "
        "Sign test: exact, two-sided; adjusted: Holm's correction over these methods. Detectable: the smallest mean "
        "difference that so many runs would find with 80% power at α = 5%, unadjusted.",
        [(summary, getattr(summary, name)) for summary in summaries],
    )


def matched_table(summaries: list[MethodSummary], name: str) -> Table | None:
    """The same where each run first reached the group's common KL."""
    level = summaries[0].level
    if math.isnan(level):
        return None
    return _comparisons(
        f"The same at {number(level)} nats, where each run first reached it: against {_other(summaries, name)}. Runs "
        "that never got so far are left out.",
        [(summary, getattr(summary, f"matched_{name}")) for summary in summaries],
        gains={summary.method: summary.matched for summary in summaries},
    )


def settled_table(summaries: list[MethodSummary], name: str) -> Table | None:
    """The same at equal KL once runs have settled; None without a budget, or if no run was there."""
    level, within = SETTLED
    return _comparisons(
        f"The same at equal KL once runs have settled: the mean of a run's second half wherever its KL, smoothed, is "
        f"{level - within:.0%} to {level + within:.0%} of the budget, against {_other(summaries, name)}. Where a KL "
        "is first reached a run is still climbing, and weighted runs pass there sooner. Runs with fewer than five "
        "such updates are left out.",
        [(summary, getattr(summary, f"settled_{name}")) for summary in summaries],
        gains={summary.method: summary.settled for summary in summaries},
    )


def _comparisons(
    caption: str, compared: list[tuple[MethodSummary, Comparison]], gains: dict[str, Interval] | None = None
) -> Table | None:
    rows = [
        [
            Entry(summary.label, summary.label),
            *([] if gains is None else _reached(summary, gains[summary.method])),
            Entry(difference(versus.difference), _order(versus.difference.value), versus.beyond_chance),
            Entry(f"{versus.wins} of {versus.difference.n}", versus.wins / versus.difference.n),
            _p(versus.p),
            _p(versus.p_holm),
            _number(versus.detectable),
        ]
        for summary, versus in compared
        if versus.difference.n
    ]  # fmt: skip
    reached = ["reached by", "mean gain there"] if gains is not None else []
    headings = ["method", *reached, "difference", "better in", "sign test p", "adjusted p", "detectable"]
    return Table(caption, headings, rows) if rows else None


def _reached(summary: MethodSummary, gain: Interval) -> list[Entry]:
    """How many runs got to a KL, and their mean gain there."""
    return [Entry(f"{gain.n} of {summary.runs}", gain.n), _interval(gain)]


def price_table(summaries: list[MethodSummary]) -> Table | None:
    """CPU time of each method; None if none was measured."""
    if all(math.isnan(summary.cost.policy_cpu) for summary in summaries):
        return None
    return Table(
        "Means over runs. A reward source serves all methods of its seed in a study; a user of one method pays for it "
        "once. The ratio is of both together, at equal seeds.",
        ["method", "CPU of the policy run, s", "of its reward source, s", "against the baseline", "wall clock, s",
         "peak memory, MB"],
        [
            [
                Entry(summary.label, summary.label),
                _number(summary.cost.policy_cpu, 0),
                _number(summary.cost.source_cpu, 0),
                Entry(times(summary.cost.ratio), _order(summary.cost.ratio)),
                _number(summary.cost.seconds, 0),
                _number(summary.cost.peak_memory_mb, 0),
            ]
            for summary in summaries
        ],
    )  # fmt: skip


def groups_table(study: Study, groups: list[tuple[Group, list[MethodSummary]]]) -> Table:
    """One line for each group: the baseline, and the method that gained most, and whether they can be told apart."""
    rows = [_group_row(study, group, summaries) for group, summaries in groups]
    return Table(
        "Each line is a setting of its own. Best: the largest mean gain, picked after looking. Bold: beyond chance "
        "after Holm's correction within the line. Worse prompts: the share that the final policy answers worse than "
        "the reference, of the baseline and of the best.",
        ["group", "cells", "baseline ended below", "best method", "best ended below", "worse prompts",
         "gain over the baseline", "adjusted p"],
        rows,
    )  # fmt: skip


def _group_row(study: Study, group: Group, summaries: list[MethodSummary]) -> list[Entry]:
    best = max(summaries, key=lambda summary: -math.inf if math.isnan(summary.gain.value) else summary.gain.value)
    base = next((summary for summary in summaries if summary.is_baseline), None)
    name = name_of(group.place, study)
    return [
        Entry(name, name),
        Entry(f"{len(group.cells)} of {group.planned}", len(group.cells)),
        Entry("–") if base is None else _risk(base),
        Entry(best.label, best.label),
        _risk(best),
        _shares(base, best),
        Entry(
            difference(best.paired.difference), _order(best.paired.difference.value), best.paired.beyond_chance
        ),
        _p(best.paired.p_holm),
    ]  # fmt: skip


def failures_table(study: Study) -> Table | None:
    """Cells whose last try ended in an error, with the first line of it."""
    if not study.failed:
        return None
    rows = [
        [
            Entry(_cell_name(failure.place), _cell_name(failure.place)),
            Entry(_first_line(failure.error), _first_line(failure.error), prose=True),
            Entry(failure.when, failure.when),
        ]
        for failure in study.failed
    ]
    return Table("The full errors are in failed/.", ["cell", "error", "when"], rows)


def _cell_name(place: CellPlace) -> str:
    parts = (place.setting, place.source, label_of(place.method), budget(place.kl_budget), f"seed {place.seed}")
    return " · ".join(parts)


def _first_line(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _findable(summaries: list[MethodSummary]) -> str:
    """What fall of the baseline's risk the runs would find."""
    base = next((summary for summary in summaries if summary.is_baseline and summary.risk.n), None)
    others = [summary for summary in summaries if not summary.is_baseline and summary.risk.n]
    if base is None or not others:
        return ""
    fewest = min(others, key=lambda summary: summary.risk.n)
    if base.risk.value == 0:
        return "No run of the baseline ended below the reference, so no lower risk could be found."
    start = f"From the baseline's risk of {base.risk.value:.0%}, {counted(fewest.risk.n, 'run')} each"
    if math.isnan(fewest.risk_detectable):
        return f"{start} would miss even a fall to 0 in more than one case of five."
    return f"{start} would find a fall by {100 * fewest.risk_detectable:.0f} points with 80% power."


def _anchors(summaries: list[MethodSummary]) -> str:
    """What rewards were centred by before their variance was taken, where the records tell."""
    kinds: dict[str, list[str]] = {}
    for summary in summaries:
        if summary.anchor is not None:
            kinds.setdefault(_anchor(summary), []).append(summary.label)
    if not kinds:
        return ""
    named = [f"{kind} ({', '.join(methods)})" if len(kinds) > 1 else kind for kind, methods in kinds.items()]
    return f" Rewards were centred, before their variance was taken, by {'; '.join(named)}."


def _anchor(summary: MethodSummary) -> str:
    if summary.anchor == "reference" and summary.anchor_completions is not None:
        return f"{counted(summary.anchor_completions, 'completion')} of the reference"
    return _ANCHORS.get(summary.anchor or "", summary.anchor or "–")


_ANCHORS = {
    "reference": "the reference's completions",
    "dataset": "the data's completions",
    "calibration": "one mean for all prompts",
    "group": "the policy's own group",
}


def _other(summaries: list[MethodSummary], name: str) -> str:
    if name == "to_mean":
        return f"the {label_of(MEAN)}"
    return next((summary.label for summary in summaries if summary.is_baseline), "the baseline")


def _runs(summary: MethodSummary) -> str:
    return str(summary.runs) if summary.risk.n == summary.runs else f"{summary.risk.n} of {summary.runs} scored"


def _interval(estimate: Interval) -> Entry:
    return Entry(interval(estimate) if not math.isnan(estimate.value) else "–", _order(estimate.value))


def _number(value: float, digits: int = 2) -> Entry:
    return Entry("–" if math.isnan(value) else number(value, digits), _order(value))


def _percent(estimate: Interval) -> Entry:
    """A share with its interval, or a dash."""
    return Entry("–" if math.isnan(estimate.value) else percent_interval(estimate), _order(estimate.value))


def _risk(summary: MethodSummary) -> Entry:
    return Entry(compact(summary.risk, percent=True) or UNKNOWN, _order(summary.risk.value))


def _shares(base: MethodSummary | None, best: MethodSummary) -> Entry:
    """Prompt risk of the baseline, an arrow, and that of the best, by which it is sorted."""
    values = [math.nan if base is None else base.prompt_risk.value, best.prompt_risk.value]
    if all(math.isnan(value) for value in values):
        return Entry("–")
    return Entry(" → ".join("–" if math.isnan(value) else f"{value:.0%}" for value in values), _order(values[1]))


def _p(value: float) -> Entry:
    return Entry(probability(value), _order(value))


def _order(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
