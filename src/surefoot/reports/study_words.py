"""Sum up a study in sentences: which method gained most, how sure that is, and what it cost.

The method that is spoken of is the one with the largest mean gain. "Beyond chance" needs Holm's adjusted sign test
below 5% and a bootstrap interval that leaves out 0.
"""

from __future__ import annotations

import math

from surefoot.reports.paths import SETTLED
from surefoot.reports.records import LABELS, Study
from surefoot.reports.summary import ALPHA, MEAN, MethodSummary
from surefoot.reports.wording import (
    counted,
    difference,
    equals,
    interval,
    number,
    percent,
    percent_interval,
    points,
    probability,
    signed,
    times,
)

__all__ = ["VERDICTS", "Words", "best_of", "completeness", "group_words", "proof", "study_words", "verdicts"]

FEW = 20
"""Below so many runs a risk of 0 can't be told from one of 15% (Wilson), and the report says so."""
VERDICTS = (
    "likely: more true reward than the baseline, beyond chance, in every group; unlikely: the whole 95% interval of "
    "the difference is below 0 in some group, and above 0 in none; possible: neither"
)
"""The rule of `verdicts`, as the page shows it."""
Words = list[tuple[str, str]]
"""(what is asked, the answer) for each line."""


def best_of(summaries: list[MethodSummary]) -> MethodSummary | None:
    """The method with the largest mean gain, of those with a true reward."""
    scored = [summary for summary in summaries if not math.isnan(summary.gain.value)]
    return max(scored, key=lambda summary: summary.gain.value) if scored else None


def completeness(study: Study) -> str | None:
    """How much of the grid is there; None if all of it is."""
    if len(study.cells) == study.planned:
        return None
    failed = f"; {len(study.failed)} failed" if study.failed else ""
    return (
        f"{len(study.cells)} of {study.planned} cells are finished{failed}. Every figure here is of those and may "
        "change with the rest."
    )


def verdicts(study: Study, groups: list[list[MethodSummary]]) -> list[tuple[str, str]]:
    """(method's label, "likely", "possible" or "unlikely" to be better than the baseline), by `VERDICTS`.

    The baseline is left out, and so are methods that share no scored seed with it.
    """
    found = [(method, _of_method(groups, method)) for method in study.methods]
    return [(summaries[0].label, _verdict(summaries)) for _, summaries in found if summaries]


def _of_method(groups: list[list[MethodSummary]], method: str) -> list[MethodSummary]:
    """The method's summaries in the groups where it is compared with the baseline."""
    every = [summary for summaries in groups for summary in summaries if summary.method == method]
    return [summary for summary in every if summary.paired.difference.n]


def _verdict(summaries: list[MethodSummary]) -> str:
    compared = [summary.paired for summary in summaries]
    if all(versus.beyond_chance and versus.difference.low > 0 for versus in compared):
        return "likely"
    worse = any(versus.difference.high < 0 for versus in compared)
    better = any(versus.difference.low > 0 for versus in compared)
    return "unlikely" if worse and not better else "possible"


def study_words(study: Study, groups: list[list[MethodSummary]]) -> Words:
    """The lines that open the page: of a single group, or of each method over several groups."""
    return group_words(groups[0]) if len(groups) == 1 else [*_over_groups(study, groups), _families(len(groups))]


def group_words(summaries: list[MethodSummary]) -> Words:
    """Which method gained most in one group, how sure that is, what it adds to averaging, and what it cost."""
    best, base = best_of(summaries), next((summary for summary in summaries if summary.is_baseline), None)
    if best is None:
        return [("Which method", "No run has a true reward, so risk and gain are unknown.")]
    if base is None:
        return [("Which method", f"{_gained(best)} The baseline has no finished run here to compare it with.")]
    if best.is_baseline:
        leads = [("Which method", _baseline_leads(summaries, best)), ("Risk", _risks(best, best))]
        return leads + [("Prompts", line) for line in _worse_prompts(best, best)]
    words = [
        ("Which method", _gained(best, base)),
        ("How sure", _sure(best, base, len(summaries) - 1)),
        ("Risk", _risks(best, base)),
        *(("Prompts", line) for line in _worse_prompts(best, base)),
    ]
    if best.settled_paired.difference.n or not math.isnan(best.level):
        words.append(("At equal distance", _at_level(best, base)))
    words += [("Beyond averaging", line) for line in _against_mean(best, summaries)]
    return words + [("Cost", _price(best, base))] * (not math.isnan(best.cost.ratio))


def proof(summaries: list[MethodSummary]) -> str:
    """What this number of runs can show, by a fixed rule."""
    runs = min((summary.risk.n for summary in summaries), default=0)
    if not runs:
        return "Not every method has a run with a true reward yet."
    lowest = min(summary.risk.value for summary in summaries)
    upper = max(summary.risk.high for summary in summaries if summary.risk.value == lowest)
    if runs < FEW:
        most = max(summary.risk.n for summary in summaries)
        each = counted(runs, "run") if runs == most else f"{runs} to {most} runs"
        return (
            f"{each} of each method are too few to measure a small risk: the method with the lowest one ended below "
            f"the reference in {percent(lowest)} of its runs, with a 95% interval up to {percent(upper)}."
        )
    return f"Every method has {runs} runs or more in every group. Intervals are of 95%."


def _gained(best: MethodSummary, base: MethodSummary | None = None) -> str:
    against = f", against {interval(base.gain)} of {base.label}" if base is not None else ""
    return f"{_capital(best.label)} gained most: {interval(best.gain)} in true reward over the reference{against}."


def _baseline_leads(summaries: list[MethodSummary], base: MethodSummary) -> str:
    told = [summary.label for summary in summaries if summary.paired.beyond_chance]
    worse = f" {_capital(_list(told))} gained less beyond chance." if told else ""
    if len(summaries) == 1:
        return _gained(base)
    return f"No method gained more than {base.label}: {interval(base.gain)} in true reward over the reference.{worse}"


def _sure(best: MethodSummary, base: MethodSummary, others: int) -> str:
    versus, n = best.paired, best.paired.difference.n
    adjusted = f", {probability(versus.p_holm)} adjusted for {others} methods" if others > 1 else ""
    told = (
        f"At the same seeds it gained {difference(versus.difference)} against {base.label}, more in {versus.wins} of "
        f"{n} (sign test p {equals(versus.p)}{adjusted})"
    )
    if versus.beyond_chance:
        picked = f" It is the largest of {others} observed differences, and so biased upwards." if others > 1 else ""
        return f"{told}: beyond chance.{picked}"
    if n and others * 2 * 0.5**n > ALPHA:
        return f"{told}. Not beyond chance: with {counted(n, 'pair')} no result can pass that test; run more seeds."
    return (
        f"{told}. Not beyond chance: so many runs detect a difference of {number(versus.detectable)} with 80% power, "
        "and smaller ones less often."
    )


def _risks(best: MethodSummary, base: MethodSummary) -> str:
    first = f"{_capital(best.label)} ended below the reference in {_count(best)}"
    if best is base:
        return f"{first}; its risk may be as high as {percent(best.risk.high)} (95% interval)."
    both = f"{first}, {base.label} in {_count(base)}"
    if best.risk_p < ALPHA:
        return f"{both}: beyond chance (exact McNemar p {equals(best.risk_p)})."
    if base.risk.value == 0:
        return f"{both}: these runs can't show a lower risk. That of {base.label} may be as high as " + (
            f"{percent(base.risk.high)} (95% interval)."
        )
    limit = (
        "so many runs have less than 80% power to detect any fall of that risk, even one to 0"
        if math.isnan(best.risk_detectable)
        else f"so many runs detect a fall by {100 * best.risk_detectable:.0f} points with 80% power"
    )
    return f"{both}. The difference is not beyond chance (exact McNemar p {equals(best.risk_p)}); {limit}."


def _worse_prompts(best: MethodSummary, base: MethodSummary) -> list[str]:
    """How many prompts got worse answers than from the reference; nothing if the records don't tell."""
    if not best.prompt_risk.n:
        return []
    first = (
        f"{_capital(best.label)} answered {percent_interval(best.prompt_risk)} of the prompts worse than the reference"
    )
    if best is base or not base.prompt_risk.n:
        return [f"{first}."]
    both = f"{first}, {base.label} {percent_interval(base.prompt_risk)}"
    versus = best.paired_prompt_risk
    return [
        f"{both}." if math.isnan(versus.low) else f"{both}: {points(versus)} points at the same seeds and prompts."
    ]


def _at_level(best: MethodSummary, base: MethodSummary) -> str:
    """Of settled runs if there are any, else where runs first reach the common KL."""
    settled = best.settled_paired.difference.n > 0
    versus = best.settled_paired if settled else best.matched_paired
    where = (
        f"Settled at about {percent(SETTLED[0])} of the budget"
        if settled
        else f"Where runs first reach {number(best.level)} nats of KL"
    )
    sure = "beyond chance" if versus.beyond_chance else "not beyond chance"
    return f"{where}, the difference to {base.label} is {difference(versus.difference)}: {sure}."


def _against_mean(best: MethodSummary, summaries: list[MethodSummary]) -> list[str]:
    mean = next((summary for summary in summaries if summary.method == MEAN), None)
    if mean is None or best.method == MEAN or mean.is_baseline or not best.to_mean.difference.n:
        return []
    told = f"Against the plain mean of members it gained {difference(best.to_mean.difference)}"
    level = best.settled_to_mean if best.settled_to_mean.difference.n else best.matched_to_mean
    if level.difference.n:
        told += f" ({difference(level.difference)} at equal KL)"
    return [f"{told}: {'beyond chance' if best.to_mean.beyond_chance else 'not beyond chance'}."]


def _price(best: MethodSummary, base: MethodSummary) -> str:
    return f"{times(best.cost.ratio)} the CPU time of {base.label}, training of the reward source included."


def _over_groups(study: Study, groups: list[list[MethodSummary]]) -> Words:
    """For each method, in how many groups it gained more or less than the baseline beyond chance."""
    lines = []
    for method in study.methods:
        mine = _of_method(groups, method)
        if mine:
            lines.append((_capital(mine[0].label), _counted(mine)))
    bases = [summary for summaries in groups for summary in summaries if summary.is_baseline and summary.risk.n]
    for label in dict.fromkeys(summary.label for summary in bases):
        base = [summary for summary in bases if summary.label == label]
        where = "" if len(base) == len(bases) else f" of {counted(len(base), 'group')}"
        lines.append((_capital(label), f"The baseline{where}. {_lost(base)}"))
    return lines or [("Which method", "There is nothing to compare yet.")]


def _counted(summaries: list[MethodSummary]) -> str:
    more = sum(summary.paired.beyond_chance and summary.paired.difference.value > 0 for summary in summaries)
    less = sum(summary.paired.beyond_chance and summary.paired.difference.value < 0 for summary in summaries)
    values = sorted(summary.paired.difference.value for summary in summaries)
    low, high = signed(values[0]), signed(values[-1])
    means = f"Mean difference {low}" if low == high else f"Mean differences from {low} to {high}"
    return (
        f"Better than the baseline beyond chance in {more} of {counted(len(summaries), 'group')}, worse in {less}, "
        f"undecided in {len(summaries) - more - less}. {means}{_costs(summaries)}. {_lost(summaries)}"
    )


def _lost(summaries: list[MethodSummary]) -> str:
    scored = [summary for summary in summaries if summary.risk.n]
    lost, runs = (
        sum(round(summary.risk.value * summary.risk.n) for summary in scored),
        sum(summary.risk.n for summary in scored),
    )
    return f"Ended below the reference in {lost} of {runs} runs{_worse_in(summaries)}."


def _worse_in(summaries: list[MethodSummary]) -> str:
    shares = sorted(summary.prompt_risk.value for summary in summaries if summary.prompt_risk.n)
    if not shares:
        return ""
    low, high = percent(shares[0]), percent(shares[-1])
    return f", and answered {low if low == high else f'{low} to {high}'} of the prompts worse"


def _costs(summaries: list[MethodSummary]) -> str:
    ratios = sorted(summary.cost.ratio for summary in summaries if not math.isnan(summary.cost.ratio))
    if not ratios:
        return ""
    low, high = times(ratios[0]), times(ratios[-1])
    return f", at {low} the CPU time" if low == high else f", at {low} to {high} the CPU time"


def _families(count: int) -> tuple[str, str]:
    return (
        "How sure",
        f"Tests are corrected over the methods of a group, not over the {count} groups: of many groups without any "
        "difference, some pass the test.",
    )


def _count(summary: MethodSummary) -> str:
    return (
        f"{round(summary.risk.value * summary.risk.n)} of {counted(summary.risk.n, 'run')}"
        if summary.risk.n
        else "none that was scored"
    )


def _capital(text: str) -> str:
    """With a capital, unless it starts with a name that the user chose."""
    return text[:1].upper() + text[1:] if text.startswith(tuple(LABELS.values())) else text


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
