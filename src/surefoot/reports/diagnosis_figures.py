"""The figures of a diagnosis, each from one of its sections."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from surefoot.reports.figures import COLOURS, MARKERS, blank, draw_intervals

__all__ = ["accuracy_figure", "calibration_figure", "coverage_figure", "far_figure", "spread_figure"]

_WAYS = {"sd_over_margin": "sd / |margin|", "variance": "variance", "margin": "−|margin| (baseline)"}


def accuracy_figure(found: dict[str, Any]) -> Figure:
    """Accuracy of each member and of the mean, and of the mean on each subset."""
    accuracy = found["accuracy"]
    rows = [accuracy["overall"], *accuracy["members"], *(one["mean"] for one in accuracy["subsets"].values())]
    names = ["all pairs", *(f"member {k}" for k in range(len(accuracy["members"]))), *accuracy["subsets"]]
    figure, axes = blank(5.2, 0.9 + 0.24 * len(rows))
    draw_intervals(axes, rows, names, COLOURS[1])
    axes.axvline(0.5, color="#555555", linewidth=1, linestyle="--")
    axes.set_xlabel("share of pairs ranked as annotated (dashed: chance)")
    return figure


def spread_figure(found: dict[str, Any]) -> Figure:
    """How the members' standard deviation of the margin is spread over pairs, and how many are in the minority."""
    members = found["disagreement"]
    figure, (left, right) = blank(6.4, 2.7, columns=2)
    edges, counts = members["sd_histogram"]["edges"], members["sd_histogram"]["counts"]
    left.bar(edges[:-1], counts, width=edges[1] - edges[0], align="edge", color=COLOURS[1], edgecolor="white")
    left.set_xlabel("sd of the margin over members")
    left.set_ylabel("pairs")
    sizes = members["minority_sizes"]
    right.bar(range(len(sizes)), sizes, color=COLOURS[4], edgecolor="white")
    right.set_xticks(range(len(sizes)))
    right.set_xlabel("members in the minority")
    return figure


def calibration_figure(found: dict[str, Any]) -> Figure:
    """Reliability: accuracy against confidence, of the margin alone and with the fitted variance."""
    figure, axes = blank(4.4, 3.5)
    axes.plot([0.5, 1], [0.5, 1], color="#555555", linewidth=1, linestyle="--")
    named = {"mean": "margin alone", "fitted": "with the fitted variance"}
    for (key, name), colour, marker in zip(named.items(), COLOURS, MARKERS, strict=False):
        curve = found["calibration"][key]["curve"]
        confidence, accuracy = [point[0] for point in curve], [point[1]["value"] for point in curve]
        errors = [
            [max(0.0, point[1]["value"] - point[1]["low"]) for point in curve],
            [max(0.0, point[1]["high"] - point[1]["value"]) for point in curve],
        ]
        axes.errorbar(
            confidence, accuracy, errors, color=colour, marker=marker, markersize=5, linewidth=1.2, elinewidth=0.8,
            label=name,
        )  # fmt: skip
    axes.set_xlabel("confidence, bins of equal mass")
    axes.set_ylabel("accuracy")
    axes.legend(loc="best", fontsize=9.5)
    return figure


def coverage_figure(found: dict[str, Any]) -> Figure:
    """Error rate of the pairs kept if the most uncertain are put aside."""
    figure, axes = blank(4.8, 3.3)
    for (key, name), colour, style in zip(_WAYS.items(), COLOURS[1:], ("-", "-.", ":"), strict=False):
        curve = found["usefulness"]["coverage"][key]
        axes.plot(curve["coverage"], curve["risk"], style, color=colour, linewidth=2, label=name)
    axes.axhline(found["usefulness"]["random_area"], color="#555555", linewidth=1, linestyle="--")
    axes.set_xlabel("share of pairs kept, the surest first")
    axes.set_ylabel("error rate among them")
    axes.legend(loc="best", fontsize=9.5)
    return figure


def far_figure(found: dict[str, Any]) -> Figure:
    """AUROC of the variance for each kind of far text."""
    kinds = found["far"]
    figure, (left, right) = blank(6.4, 0.9 + 0.28 * len(kinds), columns=2)
    names = [one["label"] for one in kinds.values()]
    draw_intervals(left, [one["auroc"] for one in kinds.values()], names, COLOURS[2])
    left.axvline(0.5, color="#555555", linewidth=1, linestyle="--")
    left.set_xlabel("AUROC of the variance")
    draw_intervals(right, [one["preferred"] for one in kinds.values()], names, COLOURS[0])
    right.set_yticklabels([])
    right.axvline(0.5, color="#555555", linewidth=1, linestyle="--")
    right.set_xlabel("liked better than the reply")
    return figure
