"""The tables of a study's page: text for readers, and a number beside it for sorting."""

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


def ends_table(found: list[MethodSummary]) -> Table:
    """Where the runs ended: risk, gain, spread and tail."""
    return Table(
        "Gains in true reward over the reference on fresh prompts, with 95% intervals: Wilson's for the risk, "
        "bootstrap for means. Risk p: exact McNemar test against the baseline; spread p: Brown–Forsythe. "
        "Gap: the best running mean of the true reward along a run minus its last one. "
        f"{_findable(found)}{_anchors(found)}",
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
                Entry(one.label, one.label),
                Entry(_runs(one), one.runs),
                Entry(percent_interval(one.risk), _order(one.risk.value)),
                _p(one.risk_p),
                _interval(one.gain),
                _number(one.spread),
                _p(one.spread_p),
                _number(one.worst),
                _number(one.kl, 1),
                _interval(one.gap),
            ]
            for one in found
        ],
    )


def prompts_table(found: list[MethodSummary]) -> Table:
    """On how many prompts the final policies are worse than the reference; dashes where the records don't tell."""
    count = next((one.prompt_completions for one in found if one.prompt_completions), None)
    fresh = "fresh completions" if count is None else f"about {counted(count, 'fresh completion')} of each"
    return Table(
        "Worse prompts: the share of evaluation prompts that the final policy answers worse than the reference does, "
        f"by the mean true reward of {fresh}, over runs and prompts. Their interval, and that of the difference to "
        f"{_other(found, 'paired')} at the same seeds and prompts, resample both.",
        ["method", "runs", "worse prompts", "against the baseline, points"],
        [
            [
                Entry(one.label, one.label),
                Entry(str(one.prompt_risk.n), one.prompt_risk.n),
                _percent(one.prompt_risk),
                Entry(points(one.paired_prompt_risk), _order(one.paired_prompt_risk.value)),
            ]
            for one in found
        ],
    )


def differences_table(found: list[MethodSummary], name: str) -> Table | None:
    """Gains at the end against another method's, seed by seed; None if there is nothing to compare.

    Args:
        name: `paired` or `to_mean`.
    """
    return _comparisons(
        f"Mean gain at the end minus that of {_other(found, name)} at the same seed, with its bootstrap interval. "
        "Sign test: exact, two-sided; adjusted: Holm's correction over these methods. Detectable: the smallest mean "
        "difference that so many runs would find with 80% power at α = 5%, unadjusted.",
        [(one, getattr(one, name)) for one in found],
    )


def matched_table(found: list[MethodSummary], name: str) -> Table | None:
    """The same where each run first reached the group's common KL."""
    level = found[0].level
    if math.isnan(level):
        return None
    return _comparisons(
        f"The same at {number(level)} nats, where each run first reached it: against {_other(found, name)}. Runs that "
        "never got so far are left out.",
        [(one, getattr(one, f"matched_{name}")) for one in found],
        gains={one.method: one.matched for one in found},
    )


def settled_table(found: list[MethodSummary], name: str) -> Table | None:
    """The same at equal KL once runs have settled; None without a budget, or if no run was there."""
    level, within = SETTLED
    return _comparisons(
        f"The same at equal KL once runs have settled: the mean of a run's second half wherever its KL, smoothed, is "
        f"{level - within:.0%} to {level + within:.0%} of the budget, against {_other(found, name)}. Where a KL is "
        "first reached a run is still climbing, and weighted runs pass there sooner. Runs with fewer than five such "
        "updates are left out.",
        [(one, getattr(one, f"settled_{name}")) for one in found],
        gains={one.method: one.settled for one in found},
    )


def _comparisons(
    caption: str, found: list[tuple[MethodSummary, Comparison]], gains: dict[str, Interval] | None = None
) -> Table | None:
    rows = [
        [
            Entry(one.label, one.label),
            *([Entry(f"{gains[one.method].n} of {one.runs}", gains[one.method].n), _interval(gains[one.method])]
              if gains is not None else []),
            Entry(difference(versus.difference), _order(versus.difference.value), versus.beyond_chance),
            Entry(f"{versus.wins} of {versus.difference.n}", versus.wins / versus.difference.n),
            _p(versus.p),
            _p(versus.p_holm),
            _number(versus.detectable),
        ]
        for one, versus in found
        if versus.difference.n
    ]  # fmt: skip
    reached = ["reached by", "mean gain there"] if gains is not None else []
    headings = ["method", *reached, "difference", "better in", "sign test p", "adjusted p", "detectable"]
    return Table(caption, headings, rows) if rows else None


def price_table(found: list[MethodSummary]) -> Table | None:
    """CPU time of each method; None if none was measured."""
    if all(math.isnan(one.cost.policy_cpu) for one in found):
        return None
    return Table(
        "Means over runs. A reward source serves all methods of its seed in a study; a user of one method pays for it "
        "once. The ratio is of both together, at equal seeds.",
        ["method", "CPU of the policy run, s", "of its reward source, s", "against the baseline", "wall clock, s",
         "peak memory, MB"],
        [
            [
                Entry(one.label, one.label),
                _number(one.cost.policy_cpu, 0),
                _number(one.cost.source_cpu, 0),
                Entry(times(one.cost.ratio), _order(one.cost.ratio)),
                _number(one.cost.seconds, 0),
                _number(one.cost.peak_memory_mb, 0),
            ]
            for one in found
        ],
    )  # fmt: skip


def groups_table(study: Study, groups: list[tuple[Group, list[MethodSummary]]]) -> Table:
    """One line for each group: the baseline, and the method that gained most, and whether they can be told apart."""
    rows = [_group_row(study, group, found) for group, found in groups]
    return Table(
        "Each line is a setting of its own. Best: the largest mean gain, picked after looking. Bold: beyond chance "
        "after Holm's correction within the line. Worse prompts: the share that the final policy answers worse than "
        "the reference, of the baseline and of the best.",
        ["group", "cells", "baseline ended below", "best method", "best ended below", "worse prompts",
         "gain over the baseline", "adjusted p"],
        rows,
    )  # fmt: skip


def _group_row(study: Study, group: Group, found: list[MethodSummary]) -> list[Entry]:
    best = max(found, key=lambda one: -math.inf if math.isnan(one.gain.value) else one.gain.value)
    base = next((one for one in found if one.is_baseline), None)
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


def _findable(found: list[MethodSummary]) -> str:
    """What fall of the baseline's risk the runs would find."""
    base = next((one for one in found if one.is_baseline and one.risk.n), None)
    others = [one for one in found if not one.is_baseline and one.risk.n]
    if base is None or not others:
        return ""
    fewest = min(others, key=lambda one: one.risk.n)
    if base.risk.value == 0:
        return "No run of the baseline ended below the reference, so no lower risk could be found."
    start = f"From the baseline's risk of {base.risk.value:.0%}, {counted(fewest.risk.n, 'run')} each"
    if math.isnan(fewest.risk_detectable):
        return f"{start} would miss even a fall to 0 in more than one case of five."
    return f"{start} would find a fall by {100 * fewest.risk_detectable:.0f} points with 80% power."


def _anchors(found: list[MethodSummary]) -> str:
    """What rewards were centred by before their variance was taken, where the records tell."""
    kinds: dict[str, list[str]] = {}
    for one in found:
        if one.anchor is not None:
            kinds.setdefault(_anchor(one), []).append(one.label)
    if not kinds:
        return ""
    named = [f"{kind} ({', '.join(methods)})" if len(kinds) > 1 else kind for kind, methods in kinds.items()]
    return f" Rewards were centred, before their variance was taken, by {'; '.join(named)}."


def _anchor(one: MethodSummary) -> str:
    if one.anchor == "reference" and one.anchor_completions is not None:
        return f"{counted(one.anchor_completions, 'completion')} of the reference"
    return _ANCHORS.get(one.anchor or "", one.anchor or "–")


_ANCHORS = {
    "reference": "the reference's completions",
    "dataset": "the data's completions",
    "calibration": "one mean for all prompts",
    "group": "the policy's own group",
}


def _other(found: list[MethodSummary], name: str) -> str:
    if name == "to_mean":
        return f"the {label_of(MEAN)}"
    return next((one.label for one in found if one.is_baseline), "the baseline")


def _runs(one: MethodSummary) -> str:
    return str(one.runs) if one.risk.n == one.runs else f"{one.risk.n} of {one.runs} scored"


def _interval(found: Interval) -> Entry:
    return Entry(interval(found) if not math.isnan(found.value) else "–", _order(found.value))


def _number(value: float, digits: int = 2) -> Entry:
    return Entry("–" if math.isnan(value) else number(value, digits), _order(value))


def _percent(found: Interval) -> Entry:
    """A share with its interval, or a dash."""
    return Entry("–" if math.isnan(found.value) else percent_interval(found), _order(found.value))


def _risk(one: MethodSummary) -> Entry:
    return Entry(compact(one.risk, percent=True) or UNKNOWN, _order(one.risk.value))


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
