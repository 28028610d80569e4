"""The summary of a study in plain words: which method, how sure, at what cost, by fixed rules.

The method that is spoken of is the one with the largest mean gain. "Beyond chance" needs Holm's adjusted sign test
below 5% and a bootstrap interval that leaves out 0.
"""

from __future__ import annotations

import math

from surefoot.reports.records import Study
from surefoot.reports.summary import ALPHA, MEAN, Comparison, MethodSummary
from surefoot.reports.wording import interval, number, probability, signed, times

__all__ = ["best_of", "completeness", "group_words", "proof", "study_words"]

FEW = 20
"""Below so many runs a risk of 0 can't be told from one of 15% (Wilson), and the report says so."""


def best_of(found: list[MethodSummary]) -> MethodSummary | None:
    """The method with the largest mean gain, of those with a true reward."""
    scored = [one for one in found if not math.isnan(one.gain.value)]
    return max(scored, key=lambda one: one.gain.value) if scored else None


def completeness(study: Study) -> str | None:
    """How much of the grid is there; None if all of it is."""
    if len(study.cells) == study.planned:
        return None
    failed = f"; {len(study.failed)} failed" if study.failed else ""
    return (
        f"{len(study.cells)} of {study.planned} cells are finished{failed}. Every figure here is of those and may "
        "change with the rest."
    )


def study_words(study: Study, groups: list[list[MethodSummary]]) -> list[str]:
    """The sentences that open the page."""
    return group_words(groups[0]) if len(groups) == 1 else [*_over_groups(study, groups), _families(len(groups))]


def group_words(found: list[MethodSummary]) -> list[str]:
    """Which method gained most in one group, how sure that is, what it adds to averaging, and what it cost."""
    best, base = best_of(found), next((one for one in found if one.is_baseline), None)
    if best is None:
        return ["No run has a true reward, so nothing can be said of risk."]
    if base is None:
        return [
            _gained(best),
            f"The baseline has no finished run here, so there is nothing to compare {best.label} with.",
        ]
    if best.is_baseline:
        return [*_baseline_leads(found, best), _risks(best, best)]
    lines = [_gained(best, base), _sure(best, base, len(found) - 1), _risks(best, base)]
    lines += [_at_level(best)] * (not math.isnan(best.level)) + _against_mean(best, found)
    return lines + [_price(best, base)] * (not math.isnan(best.cost.ratio))


def proof(found: list[MethodSummary]) -> str:
    """What this number of runs can show, by a fixed rule."""
    runs = min((one.risk.n for one in found), default=0)
    lowest = min((one.risk.value for one in found if one.risk.n), default=math.nan)
    upper = max((one.risk.high for one in found if one.risk.value == lowest), default=1.0)
    if runs < FEW:
        return (
            f"{runs} runs of each method demonstrate and don't prove: the safest method here ended below the "
            f"reference in {lowest:.0%} of its runs, and may do so in up to {upper:.0%} of them (95% interval)."
            if runs
            else "Not every method has a scored run yet."
        )
    return f"With {runs} runs of each method or more, the intervals say how sure each figure is."


def _gained(best: MethodSummary, base: MethodSummary | None = None) -> str:
    against = f", {base.label} {interval(base.gain)}" if base is not None else ""
    return f"{_capital(best.label)} gained most: mean true reward over the reference {interval(best.gain)}{against}."


def _baseline_leads(found: list[MethodSummary], base: MethodSummary) -> list[str]:
    told = [one for one in found if one.paired.beyond_chance]
    worse = f" {_list([one.label for one in told])} gained less beyond chance." if told else ""
    if len(found) == 1:
        return [_gained(base)]
    return [f"No method gained more than {base.label}: {interval(base.gain)} over the reference.{worse}"]


def _sure(best: MethodSummary, base: MethodSummary, others: int) -> str:
    versus = best.paired
    n = versus.difference.n
    told = f"Seed by seed it gained {_versus(versus)} against {base.label}, and more in {versus.wins} of {n}"
    tested = f" (sign test p {_equals(versus.p)}" + (f", {_equals(versus.p_holm)} adjusted)" if others > 1 else ")")
    if versus.beyond_chance:
        picked = " It was picked as the best after looking, so its figure flatters it." if others > 1 else ""
        return f"{told}{tested}: more than chance explains.{picked}"
    if n and others * 2 * 0.5**n > ALPHA:
        return f"{told}{tested}. {n} pairs can't pass the sign test here whatever they show; more seeds can."
    return f"{told}{tested}. That may be chance: so many runs would find a difference of {number(versus.detectable)}."


def _risks(best: MethodSummary, base: MethodSummary) -> str:
    first = f"{_capital(best.label)} ended below the reference in {_count(best)}"
    if best is base:
        return f"{first}; up to {best.risk.high:.0%} can't be ruled out."
    both = f"{first}, {base.label} in {_count(base)}"
    if best.risk_p < ALPHA:
        return f"{both} (p {_equals(best.risk_p)}): the risks differ beyond chance."
    limit = (
        "no fall of the risk, not even to 0, would be found with so many"
        if math.isnan(best.risk_detectable)
        else f"a fall by {100 * best.risk_detectable:.0f} points would be found"
    )
    return f"{both}. The risks can't be told apart (p {_equals(best.risk_p)}; {limit})."


def _at_level(best: MethodSummary) -> str:
    versus = best.matched_paired
    sure = "beyond chance" if versus.beyond_chance else "not beyond chance"
    level = f"At the same distance from the reference, {number(best.level)} nats"
    return f"{level}, the difference is {_versus(versus)}: {sure}."


def _against_mean(best: MethodSummary, found: list[MethodSummary]) -> list[str]:
    mean = next((one for one in found if one.method == MEAN), None)
    if mean is None or best.method == MEAN or mean.is_baseline or not best.to_mean.difference.n:
        return []
    at_level = f" ({_versus(best.matched_to_mean)} at equal KL)" if not math.isnan(best.level) else ""
    if best.to_mean.beyond_chance:
        return [f"Against the plain mean of members it gained {_versus(best.to_mean)}{at_level}: beyond chance."]
    return [
        f"Against the plain mean of members it gained {_versus(best.to_mean)}{at_level}: what it adds to averaging "
        "can't be told from nothing here."
    ]


def _price(best: MethodSummary, base: MethodSummary) -> str:
    return f"It cost {times(best.cost.ratio)} the CPU time of {base.label}, reward source included."


def _over_groups(study: Study, groups: list[list[MethodSummary]]) -> list[str]:
    """For each method, in how many groups it gained more or less than the baseline beyond chance."""
    lines = []
    for method in study.methods:
        mine = [one for found in groups for one in found if one.method == method and one.paired.difference.n]
        if not mine:
            continue
        more = sum(one.paired.beyond_chance and one.paired.difference.value > 0 for one in mine)
        less = sum(one.paired.beyond_chance and one.paired.difference.value < 0 for one in mine)
        values = sorted(one.paired.difference.value for one in mine)
        lines.append(
            f"{_capital(mine[0].label)}: beyond chance better than the baseline in {more} of {len(mine)} groups, worse "
            f"in {less}, not told apart in {len(mine) - more - less}; differences from {signed(values[0])} to "
            f"{signed(values[-1])}{_costs(mine)}."
        )
    return lines


def _costs(found: list[MethodSummary]) -> str:
    ratios = sorted(one.cost.ratio for one in found if not math.isnan(one.cost.ratio))
    if not ratios:
        return ""
    low, high = times(ratios[0]), times(ratios[-1])
    return f", at {low} the CPU time" if low == high else f", at {low} to {high} the CPU time"


def _families(count: int) -> str:
    return (
        f"Tests are corrected over the methods of a group, not over the {count} groups: with many groups, some are "
        "called beyond chance by chance."
    )


def _versus(found: Comparison) -> str:
    one = found.difference
    return f"{signed(one.value)}" + ("" if math.isnan(one.low) else f" [{signed(one.low)}, {signed(one.high)}]")


def _count(one: MethodSummary) -> str:
    return f"{round(one.risk.value * one.risk.n)} of {one.risk.n} runs" if one.risk.n else "none that was scored"


def _equals(p: float) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
