"""The tables of a study's page; each entry has its text and the value that it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from surefoot.metrics.intervals import Interval
from surefoot.reports.paths import REACHED, SETTLED
from surefoot.reports.records import Group, Study, label_of
from surefoot.reports.summary import MEAN, Comparison, MethodSummary
from surefoot.reports.wording import (
    budget,
    counted,
    difference,
    equals,
    interval,
    number,
    percent,
    percent_interval,
    points,
    times,
)
from surefoot.run_records import CellPlace

__all__ = ["Entry", "Table", "comparison_table", "ends_table", "failures_table", "name_of", "price_table"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table.

    Args:
        text: what is read. note: smaller, on a line below it.
        order: what it is sorted by; None is unknown, and always last.
        strong: whether it is bold. prose: whether it may wrap.
    """

    text: str
    order: float | str | None = None
    strong: bool = False
    prose: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table with a text below it that explains its columns; the first `names` entries of a row name it."""

    title: str
    caption: str
    headings: list[str]
    rows: list[list[Entry]]
    names: int = 1


def name_of(place: tuple[str, str, float | None], study: Study) -> str:
    """A group by what tells it from the others of its study."""
    setting, source, kl_budget = place
    grid = study.grid
    axes = ((grid.settings, setting), (grid.sources, source), (grid.kl_budgets, budget(kl_budget)))
    return " · ".join(name for axis, name in axes if len(axis) > 1) or setting


def ends_table(summaries: list[MethodSummary]) -> Table:
    """Where the runs ended: risk, worse prompts, gain, spread and tail."""
    return Table(
        "Final figures by method",
        "Gains in true reward over the reference on fresh prompts, with 95% intervals: Wilson's for the risk, "
        "bootstrap for means. Below a risk: the exact McNemar test against the baseline; below a spread: "
        "Brown–Forsythe. Worst tenth: the mean gain of the worst 10% of runs. Gap: the best running mean of the true "
        f"reward along a run minus its last one. {_findable(summaries)}{_prompts(summaries)}{_anchors(summaries)}",
        ["method", "runs", "ended below", "worse prompts", "mean gain", "spread (sd)", "worst tenth", "KL", "gap"],
        [
            [
                Entry(summary.label, summary.label),
                Entry(_runs(summary), summary.runs),
                Entry(percent_interval(summary.risk), _order(summary.risk.value), note=_p(summary.risk_p)),
                _worse_prompts(summary),
                _interval(summary.gain),
                replace(_number(summary.spread), note=_p(summary.spread_p)),
                _number(summary.worst),
                _number(summary.kl, 1),
                _interval(summary.gap),
            ]
            for summary in summaries
        ],
    )


def _worse_prompts(summary: MethodSummary) -> Entry:
    """The share with its interval, and the difference to the baseline; a dash where the records don't tell."""
    if math.isnan(summary.prompt_risk.value):
        return Entry("–")
    versus = summary.paired_prompt_risk
    note = "" if math.isnan(versus.value) else f"{points(versus)} points"
    return Entry(percent_interval(summary.prompt_risk), _order(summary.prompt_risk.value), note=note)


def _prompts(summaries: list[MethodSummary]) -> str:
    """What the share of worse prompts is of; nothing where no record tells it."""
    if not any(summary.prompt_risk.n for summary in summaries):
        return ""
    count = next((summary.prompt_completions for summary in summaries if summary.prompt_completions), None)
    fresh = "fresh completions" if count is None else f"about {counted(count, 'fresh completion')} of each"
    return (
        " Worse prompts: the share of evaluation prompts that the final policy answers worse than the reference does, "
        f"by the mean true reward of {fresh}, over runs and prompts; below it the difference to "
        f"{_other(summaries, 'paired')} at the same seeds and prompts. Both intervals resample runs and prompts."
    )


def comparison_table(study: Study, groups: Sequence[tuple[Group, list[MethodSummary]]]) -> Table | None:
    """Gains minus those of the baseline and of the mean of members, seed by seed; None if nothing can be compared."""
    rows = [
        [
            Entry(name_of(group.place, study), name_of(group.place, study)),
            Entry(summary.label, summary.label),
            Entry(_other(summaries, name), _other(summaries, name)),
            _compared(getattr(summary, name), f"detectable {number(getattr(summary, name).detectable)}"),
            _compared(getattr(summary, f"matched_{name}"), f"at {number(summary.level)} nats"),
            _compared(getattr(summary, f"settled_{name}")),
        ]
        for group, summaries in groups
        for name in (("paired",) if group.baseline == MEAN else ("paired", "to_mean"))
        for summary in summaries
        if getattr(summary, name).difference.n and not summary.is_baseline  # which the mean is compared with already
    ]
    if not rows:
        return None
    headings = ["group", "method", "compared with", "at the end", "where first reached", "once settled"]
    kept = [column for column in range(len(headings)) if _varies(rows, column) or column in (1, 3)]
    others = {row[2].text for row in rows}
    return Table(
        f"Methods compared{f' with {others.pop()}' if len(others) == 1 else ''}, seed by seed",
        _explained(),
        [headings[column] for column in kept],
        [[row[column] for column in kept] for row in rows],
        names=sum(column < 3 for column in kept),
    )


def _varies(rows: list[list[Entry]], column: int) -> bool:
    """Whether a column says anything: more than one name, or a known figure."""
    entries = [row[column] for row in rows]
    return len({entry.text for entry in entries}) > 1 if column < 3 else any(e.order is not None for e in entries)


def _explained() -> str:
    level, within = SETTLED
    return (
        "Mean difference of the gains in true reward at the same seeds, with its 95% bootstrap interval; above 0 the "
        "method is better. Below it: at how many seeds it was better, and the exact two-sided sign test after Holm's "
        "correction over the methods of a group. Bold: beyond chance, which is an adjusted p below 5% and an interval "
        f"without 0. Where first reached: at the largest KL, within the budget, that {percent(REACHED)} of each "
        "method's runs reached; runs that never did are left out, and runs are still climbing there. Once settled: "
        f"the mean of a run's second half wherever its smoothed KL is {percent(level - within)} to "
        f"{percent(level + within)} of the budget; runs with fewer than five such updates are left out. Detectable: "
        "the smallest mean difference at the end that so many runs would find with 80% power at α = 5%, unadjusted. "
        "Unadjusted p and the gains at equal KL are in summary.csv."
    )


def _compared(versus: Comparison, more: str = "") -> Entry:
    if not versus.difference.n:
        return Entry("–")
    note = f"{versus.wins} of {versus.difference.n}, {_p(versus.p_holm)}{more and f'; {_unbroken(more)}'}"
    return Entry(difference(versus.difference), _order(versus.difference.value), versus.beyond_chance, note=note)


def price_table(summaries: list[MethodSummary]) -> Table | None:
    """CPU time of each method; None if none was measured."""
    if all(math.isnan(summary.cost.policy_cpu) for summary in summaries):
        return None
    return Table(
        "The price",
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
    return Table("Cells that failed", "The full errors are in failed/.", ["cell", "error", "when"], rows)


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
        return "No run of the baseline ended below the reference, so these runs can't show a lower risk."
    start = f"From the baseline's risk of {percent(base.risk.value)}, {counted(fewest.risk.n, 'run')} each"
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


def _p(value: float) -> str:
    """A p-value as a note; nothing if there is none."""
    return "" if math.isnan(value) else _unbroken(f"p {equals(value)}")


def _unbroken(words: str) -> str:
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def _order(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
