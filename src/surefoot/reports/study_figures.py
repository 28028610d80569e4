"""Draw a study: final gains, risks, differences between methods, and true reward against KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from surefoot.errors import RunError
from surefoot.metrics.intervals import Interval
from surefoot.metrics.runs import Frontier, Path, frontier
from surefoot.reports.axes import DASH, Axes, padded
from surefoot.reports.drawing import COLOURS, GREY, INK, Drawing, Legend, style_of
from surefoot.reports.figures import frame, line_of_words, listed, name_rows, word_rows
from surefoot.reports.paths import REACHED, paths_of
from surefoot.reports.records import Group, Study, label_of
from surefoot.reports.study_tables import name_of
from surefoot.reports.summary import MethodSummary
from surefoot.reports.wording import difference, interval, number, percent_interval

__all__ = ["differences_figure", "disagreement_figure", "ends_figure", "frontier_figure", "overview_figure",
           "path_figures", "risk_figure", "trajectory_figure"]  # fmt: skip

_POINTS = 40
"""Points that a thin line keeps."""
_BANDS = 4
"""Up to so many methods each have their band in one frame."""
KL = "KL from the reference (nats per sequence)"
GAIN = "true reward over the reference"


def ends_figure(group: Group, summaries: list[MethodSummary]) -> Drawing:
    """Gain of every run, with each method's mean and interval, and how many ended below the reference."""
    gains = {
        summary.method: list(group.by_seed(summary.method, lambda metrics: metrics.gold_gain).values())
        for summary in summaries
    }
    span = padded((value for values in gains.values() for value in values), include=0.0)
    words = listed("Gains of all runs", [f"{each.label} mean {interval(each.gain)}" for each in summaries])
    axes = word_rows(len(summaries), span, f"{GAIN} at the end", words, 0.0)
    for place, summary in enumerate(summaries):
        y = line_of_words(axes, place, summary.label, _below(summary))
        for spot, gain in enumerate(sorted(gains[summary.method])):
            x, _ = axes.at(gain, 0)
            axes.drawing.dot(x, y + (spot % 3 - 1) * 3.4, 3.2, _colour(group, summary.method), opacity=0.55)
        if summary.gain.n > 1:
            axes.whisker(y, summary.gain, INK)
    return axes.drawing


def risk_figure(group: Group, summaries: list[MethodSummary]) -> Drawing:
    """Share of runs that ended below the reference, with Wilson's interval."""
    words = listed(
        "Risk of ending below the reference", [f"{each.label} {percent_interval(each.risk)}" for each in summaries]
    )
    span = (0.0, max(0.1, *(summary.risk.high for summary in summaries)))
    axes = word_rows(len(summaries), span, "share of runs that ended below the reference", words, None, percent=True)
    for place, summary in enumerate(summaries):
        y = line_of_words(axes, place, summary.label, percent_interval(summary.risk))
        axes.whisker(y, summary.risk, _colour(group, summary.method))
    return axes.drawing


def differences_figure(
    group: Group, summaries: list[MethodSummary], pick: Callable[[MethodSummary], Interval], other: str
) -> Drawing | None:
    """Mean differences with their intervals; None if there are none.

    Args:
        pick: the difference of a summary. other: label of what they are compared with.
    """
    shown = [(summary, pick(summary)) for summary in summaries if pick(summary).n]
    if not shown:
        return None
    ends = [end for _, versus in shown for end in (versus.value, versus.low, versus.high)]
    words = listed(f"Gain minus that of {other}", [f"{each.label} {interval(versus)}" for each, versus in shown])
    axes = word_rows(len(shown), padded(ends, include=0.0), f"gain minus that of {other}, by seed", words, 0.0)
    for place, (summary, versus) in enumerate(shown):
        y = line_of_words(axes, place, summary.label, difference(versus))
        axes.whisker(y, versus, _colour(group, summary.method))
    return axes.drawing


def overview_figure(study: Study, groups: Sequence[tuple[Group, list[MethodSummary]]]) -> Drawing:
    """A line for each group: every method's difference to the baseline, filled where it is beyond chance."""
    shown = [summary for _, summaries in groups for summary in summaries if summary.paired.difference.n]
    methods = [method for method in study.methods if method in {summary.method for summary in shown}]
    legend = [(label_of(method), _colour(groups[0][0], method), place) for place, method in enumerate(methods)]
    names = [name_of(group.place, study) for group, _ in groups]
    span = padded([summary.paired.difference.value for summary in shown], include=0.0)
    (axes,), middles = name_rows(names, [span], ["gain minus the baseline's, by seed"], 0.0, legend)
    for y, (group, summaries) in zip(middles, groups, strict=True):
        for summary in (each for each in summaries if each.paired.difference.n):
            x, _ = axes.at(summary.paired.difference.value, 0)
            place, hollow = methods.index(summary.method), not summary.paired.beyond_chance
            axes.drawing.symbol(x, y, 4.6, _colour(group, summary.method), place, hollow=hollow)
    axes.drawing.words = f"Gains minus the baseline's in {len(groups)} groups; the table below has the figures."
    return axes.drawing


def frontier_figure(group: Group, best: str | None) -> Drawing | None:
    """Mean gain of each method at equal KL, with bands; None without trajectories of the true reward.

    Args:
        best: with many methods only this one and the baseline have their band.
    """
    paths = _all_paths(group)
    if not paths:
        return None
    curves = {method: _frontier(list(runs.values())) for method, runs in paths.items()}
    banded = [m for m in curves if len(curves) <= _BANDS or m in (best, group.baseline)]
    heights = np.concatenate([curve.mean for curve in curves.values()])
    bands = [edge for m in banded for edge in (curves[m].low, curves[m].high)]
    longest = 1.03 * max(float(curve.levels[-1]) for curve in curves.values()) or 1.0
    axes = _frame(group, list(paths), longest, padded([*heights, *np.concatenate(bands)], include=0.0))
    for place, method in enumerate(banded):
        _band(axes, curves[method], _style(group, method), place)
    for method, curve in curves.items():
        colour, dash = _style(group, method)
        axes.curve(curve.levels, curve.mean, colour, 2.4, dash=dash)
    axes.drawing.words = _at_ends("Mean true reward over the reference against KL", curves)
    return axes.drawing


def path_figures(group: Group) -> list[tuple[str, Drawing]]:
    """A small frame for each method, all on one scale: its runs, their mean and band, and the baseline's mean."""
    paths = _all_paths(group)
    curves = {method: _frontier(list(runs.values())) for method, runs in paths.items()}
    span, longest = padded(_gains(paths), include=0.0), _longest(paths) if paths else 1.0
    figures = []
    for method, runs in paths.items():
        drawing = Drawing(300, 190, _at_ends("Runs and their mean", {method: curves[method]}))
        axes = Axes(drawing, 34, 8, 258, 146, (0.0, longest), span)
        axes.y_axis("", 4)
        axes.x_axis("", count=4)
        axes.level(0.0)
        _draw_runs(axes, list(runs.values()), _colour(group, method))
        if group.baseline in curves and method != group.baseline:
            axes.curve(curves[group.baseline].levels, curves[group.baseline].mean, INK, 1.4, dash="2 3")
        _band(axes, curves[method], (_colour(group, method), ""))
        axes.curve(curves[method].levels, curves[method].mean, _colour(group, method), 2.6)
        drawing.text(163, 186, "KL, nats", anchor="middle", size=11, colour=GREY)
        figures.append((label_of(method), drawing))
    return figures


def trajectory_figure(shown: Study | Group) -> Drawing:
    """Gain in true reward against KL in one frame: a thin line for each run, a thick one for each method's mean.

    Raises:
        RunError: a study of several groups, whose runs don't belong into one frame, or no trajectories.
    """
    group = shown if isinstance(shown, Group) else _only_group(shown)
    paths = _all_paths(group)
    if not paths:
        raise RunError("no cell holds the true reward along its run (monitor_gold); there is nothing to draw")
    axes = _frame(group, list(paths), _longest(paths), padded(_gains(paths), include=0.0))
    for method, runs in paths.items():
        _draw_runs(axes, list(runs.values()), _colour(group, method))
    curves = {method: _frontier(list(runs.values())) for method, runs in paths.items()}
    for method, curve in curves.items():
        colour, dash = _style(group, method)
        axes.curve(curve.levels, curve.mean, colour, 2.8, dash=dash)
    axes.drawing.words = _at_ends("True reward over the reference against KL, run by run", curves)
    return axes.drawing


def disagreement_figure(rows: Sequence[tuple[str, list[Interval]]], label: str, chance: float | None) -> Drawing:
    """One line for each figure, a dot for each seed, with the interval where there is one seed.

    Args:
        rows: (what, its value at each seed).
    """
    known = [(what, [each for each in values if not math.isnan(each.value)]) for what, values in rows]
    ends = [end for _, values in known for each in values for end in (each.value, each.low, each.high)]
    medians = {what: float(np.median([each.value for each in values])) for what, values in known if values}
    words = listed(label, [f"{what} {number(value)}" for what, value in medians.items()])
    axes = word_rows(len(rows), padded(ends, include=chance), label, words, chance)
    for place, (what, values) in enumerate(known):
        y = line_of_words(axes, place, what, number(medians[what]) if values else "–")
        if len(values) == 1:
            axes.whisker(y, values[0], COLOURS[1])
        for each in values if len(values) > 1 else []:
            axes.drawing.dot(axes.at(each.value, 0)[0], y, 3.2, COLOURS[1], opacity=0.5)
    return axes.drawing


# --- parts -----------------------------------------------------------------------------------------------------------


def _frame(group: Group, methods: list[str], longest: float, span: tuple[float, float]) -> Axes:
    """True reward against KL, with a legend of the methods."""
    styles = [(label_of(method), *_style(group, method)) for method in methods]
    legend: Legend = [*styles, ("reference", GREY, DASH)]
    axes = frame((0.0, longest), span, KL, GAIN, legend)
    axes.level(0.0)
    return axes


def _draw_runs(axes: Axes, paths: list[Path], colour: str) -> None:
    for kl, gain in paths:
        kept = np.unique(np.linspace(0, len(kl) - 1, _POINTS).astype(int))
        axes.curve(kl[kept], gain[kept], colour, 0.9, opacity=0.3)


def _band(axes: Axes, curve: Frontier, style: tuple[str, str], hatch: int = 0) -> None:
    axes.band(curve.levels.tolist(), curve.low, curve.high, style, hatch)


def _frontier(paths: list[Path]) -> Frontier:
    """Levels from 0 to what nine in ten of the runs reached."""
    peaks = sorted((float(kl.max()) for kl, _ in paths), reverse=True)
    far = peaks[math.ceil(REACHED * len(peaks) - 1e-9) - 1]
    return frontier(paths, np.linspace(0, far, 60))


def _all_paths(group: Group) -> dict[str, dict[int, Path]]:
    by_method = {method: paths_of(group, method) for method in group.finished_methods}
    return {method: paths for method, paths in by_method.items() if paths}


def _gains(paths: dict[str, dict[int, Path]]) -> list[float]:
    return [value for runs in paths.values() for _, gain in runs.values() for value in gain]


def _longest(paths: dict[str, dict[int, Path]]) -> float:
    return 1.02 * max(float(kl.max()) for runs in paths.values() for kl, _ in runs.values()) or 1.0


def _only_group(study: Study) -> Group:
    groups = study.groups
    if len(groups) != 1:
        raise RunError(f"the study has {len(groups)} groups of runs; draw one of them (study.groups)")
    return groups[0]


def _style(group: Group, method: str) -> tuple[str, str]:
    """(colour, dash) of a method, the same in all figures of the study."""
    return style_of(group.methods.index(method))


def _colour(group: Group, method: str) -> str:
    return _style(group, method)[0]


def _below(summary: MethodSummary) -> str:
    risk = summary.risk
    return f"{round(risk.value * risk.n)}/{risk.n} below" if risk.n else "–"


def _at_ends(title: str, curves: dict[str, Frontier]) -> str:
    return listed(
        title,
        [
            f"{label_of(m)} {number(float(c.mean[-1]))} at {number(float(c.levels[-1]))} nats"
            for m, c in curves.items()
        ],
    )
