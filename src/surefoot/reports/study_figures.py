"""The figures of a study: where runs ended, their risks and differences, and true reward against KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from surefoot.errors import RunError
from surefoot.metrics.intervals import Interval
from surefoot.metrics.runs import Frontier, Path, frontier
from surefoot.reports.drawing import COLOURS, DASHES, GREY, Axes, Drawing, padded, text_width
from surefoot.reports.paths import REACHED, paths_of
from surefoot.reports.records import Group, Study, label_of
from surefoot.reports.study_tables import name_of
from surefoot.reports.summary import MethodSummary
from surefoot.reports.wording import difference, interval, number, percent_interval

__all__ = ["differences_figure", "disagreement_figure", "ends_figure", "frontier_figure", "overview_figure",
           "path_figures", "risk_figure", "trajectory_figure"]  # fmt: skip

_WIDTH = 420.0
_ROW = 40.0
_POINTS = 40
"""Points that a thin line keeps."""
_BANDS = 4
"""Up to so many methods each have their band in one frame."""
KL = "KL from the reference (nats per sequence)"
GAIN = "true reward over the reference"


def ends_figure(group: Group, found: list[MethodSummary]) -> Drawing:
    """Gain of every run, with each method's mean and interval, and how many ended below the reference."""
    gains = {one.method: list(group.by_seed(one.method, lambda metrics: metrics.gold_gain).values()) for one in found}
    span = padded((value for values in gains.values() for value in values), include=0.0)
    words = _listed("Gains of all runs", [f"{one.label} mean {interval(one.gain)}" for one in found])
    axes = _rows(len(found), span, f"{GAIN} at the end", words, 0.0)
    for place, one in enumerate(found):
        y = _line(axes, place, one.label, _below(one))
        for spot, gain in enumerate(sorted(gains[one.method])):
            x, _ = axes.at(gain, 0)
            axes.drawing.dot(x, y + (spot % 3 - 1) * 3.4, 3.2, _colour(group, one.method), opacity=0.55)
        if one.gain.n > 1:
            _whisker(axes, y, one.gain, "#1d1d1f")
    return axes.drawing


def risk_figure(group: Group, found: list[MethodSummary]) -> Drawing:
    """Share of runs that ended below the reference, with Wilson's interval."""
    words = _listed("Risk of ending below the reference", [f"{o.label} {percent_interval(o.risk)}" for o in found])
    span = (0.0, max(0.1, *(one.risk.high for one in found)))
    axes = _rows(len(found), span, "share of runs that ended below the reference", words, None, percent=True)
    for place, one in enumerate(found):
        y = _line(axes, place, one.label, percent_interval(one.risk))
        _whisker(axes, y, one.risk, _colour(group, one.method))
    return axes.drawing


def differences_figure(
    group: Group, found: list[MethodSummary], pick: Callable[[MethodSummary], Interval], other: str
) -> Drawing | None:
    """Mean differences with their intervals; None if there are none.

    Args:
        pick: the difference of a summary. other: label of what they are compared with.
    """
    shown = [(one, pick(one)) for one in found if pick(one).n]
    if not shown:
        return None
    ends = [end for _, one in shown for end in (one.value, one.low, one.high)]
    words = _listed(f"Gain minus that of {other}", [f"{one.label} {interval(versus)}" for one, versus in shown])
    axes = _rows(len(shown), padded(ends, include=0.0), f"gain minus that of {other}, by seed", words, 0.0)
    for place, (one, versus) in enumerate(shown):
        y = _line(axes, place, one.label, difference(versus))
        _whisker(axes, y, versus, _colour(group, one.method))
    return axes.drawing


def overview_figure(study: Study, groups: Sequence[tuple[Group, list[MethodSummary]]]) -> Drawing:
    """A line for each group: every method's difference to the baseline, filled where it is beyond chance."""
    shown = [one for _, found in groups for one in found if one.paired.difference.n]
    words = f"Gains minus the baseline's in {len(groups)} groups; the table below has the figures."
    drawing = Drawing(_WIDTH, 0, words)
    methods = [method for method in study.methods if method in {one.method for one in shown}]
    top = drawing.legend([(label_of(method), _colour(groups[0][0], method), None) for method in methods], 0, 14)
    names = [name_of(group.place, study) for group, _ in groups]
    left = min(0.45 * drawing.width, 12 + max(text_width(name, 11.5) for name in names))
    drawing.height = top + 24 * len(groups) + 36
    span = padded([one.paired.difference.value for one in shown], include=0.0)
    axes = Axes(drawing, left, top, drawing.width - left - 8, 24 * len(groups), span, (0.0, 1.0))
    axes.x_axis("gain minus the baseline's, by seed")
    axes.upright(0.0)
    for place, (group, found) in enumerate(groups):
        y = top + 24 * (place + 0.5)
        drawing.text(left - 8, y + 4, names[place], anchor="end", size=11.5)
        for one in found:
            x, _ = axes.at(one.paired.difference.value, 0)
            drawing.dot(x, y, 4.6, _colour(group, one.method), hollow=not one.paired.beyond_chance)
    return drawing


def frontier_figure(group: Group, best: str | None) -> Drawing | None:
    """Mean gain of each method at equal KL, with bands; None without trajectories of the true reward.

    Args:
        best: with many methods only this one and the baseline have their band.
    """
    paths = _all_paths(group)
    if not paths:
        return None
    curves = {method: _frontier(list(found.values())) for method, found in paths.items()}
    banded = [m for m in curves if len(curves) <= _BANDS or m in (best, group.baseline)]
    heights = np.concatenate([curve.mean for curve in curves.values()])
    bands = [edge for m in banded for edge in (curves[m].low, curves[m].high)]
    longest = 1.03 * max(float(curve.levels[-1]) for curve in curves.values()) or 1.0
    axes = _frame(group, list(paths), longest, padded([*heights, *np.concatenate(bands)], include=0.0))
    for method in banded:
        _band(axes, curves[method], _colour(group, method), 0.16)
    for method, curve in curves.items():
        axes.drawing.line(axes.path(curve.levels, curve.mean), _colour(group, method), 2.4, dash=_dash(group, method))
    axes.drawing.words = _at_ends("Mean true reward over the reference against KL", curves)
    return axes.drawing


def path_figures(group: Group) -> list[tuple[str, Drawing]]:
    """A small frame for each method, all on one scale: its runs, their mean and band, and the baseline's mean."""
    paths = _all_paths(group)
    curves = {method: _frontier(list(found.values())) for method, found in paths.items()}
    values = [value for found in paths.values() for _, gain in found.values() for value in gain]
    span, longest = padded(values, include=0.0), _longest(paths) if paths else 1.0
    figures = []
    for method, found in paths.items():
        drawing = Drawing(300, 190, _at_ends("Runs and their mean", {method: curves[method]}))
        axes = Axes(drawing, 34, 8, 258, 146, (0.0, longest), span)
        axes.y_axis("", 4)
        axes.x_axis("", count=4)
        axes.level(0.0)
        _runs(axes, list(found.values()), _colour(group, method))
        if group.baseline in curves and method != group.baseline:
            curve = curves[group.baseline]
            drawing.line(axes.path(curve.levels, curve.mean), "#1d1d1f", 1.4, dash="2 3")
        _band(axes, curves[method], _colour(group, method), 0.2)
        drawing.line(axes.path(curves[method].levels, curves[method].mean), _colour(group, method), 2.6)
        drawing.text(163, 186, "KL, nats", anchor="middle", size=10.5, colour=GREY)
        figures.append((label_of(method), drawing))
    return figures


def trajectory_figure(found: Study | Group) -> Drawing:
    """Gain in true reward against KL in one frame: a thin line for each run, a thick one for each method's mean.

    Raises:
        RunError: a study of several groups, whose runs don't belong into one frame, or no trajectories.
    """
    group = found if isinstance(found, Group) else _only_group(found)
    paths = _all_paths(group)
    if not paths:
        raise RunError("no cell holds the true reward along its run (monitor_gold); there is nothing to draw")
    values = [value for each in paths.values() for _, gain in each.values() for value in gain]
    axes = _frame(group, list(paths), _longest(paths), padded(values, include=0.0))
    for method, each in paths.items():
        _runs(axes, list(each.values()), _colour(group, method))
    curves = {method: _frontier(list(each.values())) for method, each in paths.items()}
    for method, curve in curves.items():
        axes.drawing.line(axes.path(curve.levels, curve.mean), _colour(group, method), 2.8, dash=_dash(group, method))
    axes.drawing.words = _at_ends("True reward over the reference against KL, run by run", curves)
    return axes.drawing


def disagreement_figure(rows: Sequence[tuple[str, list[Interval]]], label: str, chance: float | None) -> Drawing:
    """One line for each figure, a dot for each seed, with the interval where there is one seed.

    Args:
        rows: (what, its value at each seed).
    """
    known = [(what, [one for one in values if not math.isnan(one.value)]) for what, values in rows]
    ends = [end for _, values in known for one in values for end in (one.value, one.low, one.high)]
    medians = [(what, float(np.median([one.value for one in values]))) for what, values in known if values]
    words = _listed(label, [f"{what} {number(value)}" for what, value in medians])
    axes = _rows(len(rows), padded(ends, include=chance), label, words, chance)
    for place, (what, values) in enumerate(known):
        middle = dict(medians).get(what, math.nan)
        y = _line(axes, place, what, number(middle) if values else "–")
        if len(values) == 1:
            _whisker(axes, y, values[0], COLOURS[1])
        for one in values if len(values) > 1 else []:
            axes.drawing.dot(axes.at(one.value, 0)[0], y, 3.2, COLOURS[1], opacity=0.5)
    return axes.drawing


# --- parts -----------------------------------------------------------------------------------------------------------


def _rows(count: int, span: tuple[float, float], label: str, words: str, mark: float | None, *,
          percent: bool = False) -> Axes:  # fmt: skip
    """A frame with a row for each method: its name and figures on a line, what is drawn below it at full width."""
    drawing = Drawing(_WIDTH, 4 + _ROW * count + 36, words)
    axes = Axes(drawing, 8, 4, _WIDTH - 16, _ROW * count, span, (0.0, 1.0))
    axes.x_axis(label, percent=percent)
    if mark is not None:
        axes.upright(mark)
    return axes


def _line(axes: Axes, place: int, label: str, figures: str) -> float:
    """Write a row's line of words; returns the y at which to draw."""
    top = axes.top + _ROW * place
    axes.drawing.text(0, top + 12, label if len(label) <= 40 else f"{label[:39]}…", halo=True)
    axes.drawing.text(axes.drawing.width, top + 12, figures, anchor="end", size=11.5, colour="#44444a", halo=True)
    return top + 25


def _whisker(axes: Axes, y: float, found: Interval, colour: str) -> None:
    if math.isnan(found.value):
        return
    if not math.isnan(found.low):
        axes.drawing.line([(axes.at(end, 0)[0], y) for end in (found.low, found.high)], colour, 2.2)
    axes.drawing.dot(axes.at(found.value, 0)[0], y, 4.2, colour)


def _frame(group: Group, methods: list[str], longest: float, span: tuple[float, float]) -> Axes:
    """One frame with a legend above."""
    drawing = Drawing(_WIDTH, 0)
    entries = [(label_of(method), _colour(group, method), _dash(group, method)) for method in methods]
    top = drawing.legend(entries, 0, 14)
    drawing.height = top + 250 + 40
    axes = Axes(drawing, 46, top, _WIDTH - 54, 250, (0.0, longest), span)
    axes.y_axis(GAIN)
    axes.x_axis(KL)
    axes.level(0.0, "reference")
    return axes


def _runs(axes: Axes, paths: list[Path], colour: str) -> None:
    for kl, gain in paths:
        kept = np.unique(np.linspace(0, len(kl) - 1, _POINTS).astype(int))
        axes.drawing.line(axes.path(kl[kept], gain[kept]), colour, 0.9, opacity=0.3)


def _frontier(paths: list[Path]) -> Frontier:
    """Levels from 0 to what nine in ten of the runs reached."""
    peaks = sorted((float(kl.max()) for kl, _ in paths), reverse=True)
    far = peaks[math.ceil(REACHED * len(peaks) - 1e-9) - 1]
    return frontier(paths, np.linspace(0, far, 60))


def _band(axes: Axes, curve: Frontier, colour: str, opacity: float) -> None:
    edges = [*axes.path(curve.levels, curve.high), *reversed(axes.path(curve.levels, curve.low))]
    axes.drawing.area(edges, colour, opacity)


def _all_paths(group: Group) -> dict[str, dict[int, Path]]:
    found = {method: paths_of(group, method) for method in group.finished_methods}
    return {method: paths for method, paths in found.items() if paths}


def _longest(paths: dict[str, dict[int, Path]]) -> float:
    return 1.02 * max(float(kl.max()) for found in paths.values() for kl, _ in found.values()) or 1.0


def _only_group(study: Study) -> Group:
    groups = study.groups
    if len(groups) != 1:
        raise RunError(f"the study has {len(groups)} groups of runs; draw one of them (study.groups)")
    return groups[0]


def _colour(group: Group, method: str) -> str:
    return COLOURS[group.methods.index(method) % len(COLOURS)]


def _dash(group: Group, method: str) -> str:
    return DASHES[group.methods.index(method) % len(DASHES)]


def _below(one: MethodSummary) -> str:
    return f"{round(one.risk.value * one.risk.n)}/{one.risk.n} below" if one.risk.n else "–"


def _at_ends(title: str, curves: dict[str, Frontier]) -> str:
    return _listed(
        title,
        [
            f"{label_of(m)} {number(float(c.mean[-1]))} at {number(float(c.levels[-1]))} nats"
            for m, c in curves.items()
        ],
    )


def _listed(title: str, parts: list[str]) -> str:
    return f"{title}: {'; '.join(parts)}."
