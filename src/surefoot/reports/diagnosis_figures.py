"""Draw the figures of a diagnosis, each from one of its sections."""

from __future__ import annotations

import math
from typing import Any

from surefoot.metrics.intervals import Interval
from surefoot.reports.axes import Axes, padded
from surefoot.reports.drawing import COLOURS, Drawing, style_of
from surefoot.reports.figures import WIDTH, frame, listed, name_rows
from surefoot.reports.wording import interval, interval_of, number

__all__ = ["accuracy_figure", "calibration_figure", "coverage_figure", "far_figure", "spread_figure"]

_WAYS = {"sd_over_margin": "sd / |margin|", "variance": "variance", "margin": "−|margin| (baseline)"}
_CHANCE = 0.5


def accuracy_figure(diagnosis: dict[str, Any]) -> Drawing:
    """Accuracy of each member and of the mean, and of the mean on each subset."""
    accuracy = diagnosis["accuracy"]
    members = {f"member {k}": each for k, each in enumerate(accuracy["members"])}
    subsets = {name: each["mean"] for name, each in accuracy["subsets"].items()}
    rows = {"all pairs": accuracy["overall"]} | members | subsets
    shares = {name: interval_of(each) for name, each in rows.items()}
    span = padded(_ends(list(shares.values())), include=_CHANCE)
    label = "share of pairs ranked as annotated"
    (axes,), middles = name_rows(list(shares), [span], [label], _CHANCE, row=20.0)
    for y, share in zip(middles, shares.values(), strict=True):
        axes.whisker(y, share, COLOURS[1])
    axes.drawing.words = listed("Accuracy", [f"{name} {interval(share)}" for name, share in shares.items()])
    return axes.drawing


def spread_figure(diagnosis: dict[str, Any]) -> Drawing:
    """How the members' standard deviation of the margin is spread over pairs, and how many are in the minority."""
    members = diagnosis["disagreement"]
    histogram, sizes = members["sd_histogram"], members["minority_sizes"]
    edges, counts = histogram["edges"], histogram["counts"]
    drawing = Drawing(WIDTH, 220)
    left = Axes(drawing, 46, 8, 190, 172, (edges[0], edges[-1]), (0.0, 1.05 * max(*counts, 1)))
    left.y_axis("pairs")
    left.x_axis("sd of the margin over members", count=4)
    left.bars(edges, counts, COLOURS[1])
    right = Axes(drawing, 280, 8, 132, 172, (-0.5, len(sizes) - 0.5), (0.0, 1.05 * max(*sizes, 1)))
    right.y_axis("")
    right.x_axis("members in the minority", ticks=range(0, len(sizes), max(1, len(sizes) // 6)))
    right.bars([place - 0.5 for place in range(len(sizes) + 1)], sizes, COLOURS[4])
    outvoted = [f"{count} pairs with {size} in the minority" for size, count in enumerate(sizes)]
    drawing.words = listed("Spread of the margin over members; minorities", outvoted)
    return drawing


def calibration_figure(diagnosis: dict[str, Any]) -> Drawing:
    """Reliability: accuracy against confidence, of the margin alone and with the fitted variance."""
    named = {"mean": "margin alone", "fitted": "with the fitted variance"}
    legend = [(name, *style_of(place)) for place, name in enumerate(named.values())]
    curves = {key: diagnosis["calibration"][key]["curve"] for key in named}
    spans = [interval_of(share) for curve in curves.values() for _, share in curve]
    low = min(0.5, *(end for end in _ends(spans) if math.isfinite(end))) if spans else 0.5
    axes = frame((0.48, 1.02), (low - 0.02, 1.02), "confidence, bins of equal mass", "accuracy", legend)
    axes.diagonal()
    for place, curve in enumerate(curves.values()):
        colour, dash = style_of(place)
        shares = [(confidence, interval_of(share)) for confidence, share in curve]
        for confidence, share in shares:
            axes.error_bar(confidence, share.low, share.high, colour)
            axes.mark(confidence, share.value, colour)
        axes.curve([x for x, _ in shares], [share.value for _, share in shares], colour, 1.4, dash=dash)
    told = [f"{name} {_at_ends(curves[key])}" for key, name in named.items()]
    axes.drawing.words = listed("Accuracy against confidence", told)
    return axes.drawing


def coverage_figure(diagnosis: dict[str, Any]) -> Drawing:
    """Error rate of the pairs kept if the most uncertain are put aside."""
    usefulness = diagnosis["usefulness"]
    curves = {name: usefulness["coverage"][key] for key, name in _WAYS.items()}
    legend = [(name, *style_of(place)) for place, name in enumerate(curves, 1)]
    risks = [risk for curve in curves.values() for risk in curve["risk"]]
    chance = math.nan if usefulness["random_area"] is None else usefulness["random_area"]
    axes = frame((0.0, 1.0), padded([*risks, chance], include=0.0), "share of pairs kept, the surest first",
                 "error rate among them", legend)  # fmt: skip
    axes.level(chance)
    for place, curve in enumerate(curves.values(), 1):
        colour, dash = style_of(place)
        axes.curve(curve["coverage"], curve["risk"], colour, 2.2, dash=dash)
    areas = [f"{name} {number(curve['area'], 3)}" for name, curve in curves.items()]
    axes.drawing.words = listed("Mean error rate of the pairs kept", areas)
    return axes.drawing


def far_figure(diagnosis: dict[str, Any]) -> Drawing:
    """AUROC of the variance for each kind of far text, and how often the text is liked better than the reply."""
    kinds = list(diagnosis["far"].values())
    aurocs, liked = ([interval_of(each[name]) for each in kinds] for name in ("auroc", "preferred"))
    spans = [padded(_ends(intervals), include=_CHANCE) for intervals in (aurocs, liked)]
    names = [each["label"] for each in kinds]
    (left, right), middles = name_rows(names, spans, ["AUROC of the variance", "liked better"], _CHANCE)
    for y, auroc, share in zip(middles, aurocs, liked, strict=True):
        left.whisker(y, auroc, COLOURS[2])
        right.whisker(y, share, COLOURS[0])
    told = [f"{name} {interval(auroc)}" for name, auroc in zip(names, aurocs, strict=True)]
    left.drawing.words = listed("AUROC of the variance on far texts", told)
    return left.drawing


def _ends(intervals: list[Interval]) -> list[float]:
    return [end for each in intervals for end in (each.value, each.low, each.high)]


def _at_ends(curve: list[Any]) -> str:
    """The first and the last point in words."""
    points = [f"{number(share['value'])} at {number(confidence)}" for confidence, share in curve]
    return " to ".join(dict.fromkeys((points[0], points[-1]))) if points else "no bin"
