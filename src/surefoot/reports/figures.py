"""Figures as inline SVG: colour-blind safe, readable in print and on a phone, each with words beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.reports.records import LABELS, Study

__all__ = ["blank", "disagreement_figure", "draw_intervals", "final_figure", "svg", "trajectory_figure"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's palette, in the order of the study's methods."""
MARKERS = "os^Dvp*X"
_STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


def trajectory_figure(study: Study) -> Figure:
    """True reward against KL: a thin line for each seed, a thick one for their mean at equal KL."""
    figure, axes = blank(5.2, 3.7)
    reference = _reference(study)
    for colour, method in zip(COLOURS, study.methods, strict=False):
        paths = [_smooth(cell["trajectory"]) for cell in study.of(method)]
        for kl, gold in paths:
            axes.plot(kl, gold, color=colour, alpha=0.28, linewidth=0.9)
        grid, mean = _mean_path(paths)
        axes.plot(grid, mean, color=colour, linewidth=2.6, label=LABELS.get(method, method))
    axes.axhline(reference, color="#555555", linewidth=1, linestyle="--")
    axes.annotate("reference", (1, reference), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.set_xlabel("KL from the reference (nats per sequence)")
    axes.set_ylabel("true reward")
    axes.legend(loc="best", fontsize=9.5)
    return figure


def final_figure(study: Study) -> Figure:
    """True reward of the final policies, a dot for each run, with the reference as a line."""
    figure, axes = blank(5.2, 0.9 + 0.55 * len(study.methods))
    for place, method in enumerate(study.methods):
        gold = study.metric(method, "gold_final")
        offsets = place + np.linspace(-0.13, 0.13, len(gold)) if len(gold) > 1 else np.array([place])
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.plot(gold, offsets, linestyle="", marker=marker, color=colour, markersize=7, alpha=0.85)
        axes.plot([np.nanmean(gold)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
    axes.axvline(_reference(study), color="#555555", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(study.methods)), [LABELS.get(method, method) for method in study.methods])
    axes.invert_yaxis()
    axes.set_xlabel("true reward of the final policy (bar: mean, dashed: reference)")
    return figure


def disagreement_figure(found: dict[str, Any]) -> Figure:
    """What predicts the mean's mistakes (AUROC with 95% intervals), beside the members' accuracies."""
    figure, (left, right) = blank(6.4, 2.9, columns=2)
    accuracies = [*found["accuracy_of_members"], found["accuracy_of_mean"]]
    names = [f"member {k}" for k in range(len(accuracies) - 1)] + ["their mean"]
    draw_intervals(left, accuracies, names, COLOURS[1])
    left.set_xlabel("accuracy on held-out pairs")
    named = {"variance": "variance", "sd_over_margin": "sd / |margin|", "margin": "−|margin| (baseline)"}
    draw_intervals(right, [found["error_auroc"][key] for key in named], list(named.values()), COLOURS[2])
    right.axvline(0.5, color="#555555", linewidth=1, linestyle="--")
    right.set_xlabel("AUROC for the mean's mistakes")
    return figure


def svg(figure: Figure, identity: str, *, standalone: bool = False) -> str:
    """The figure as an <svg> element that scales with its box; ids are made unique by `identity`.

    Args:
        standalone: for a file of its own, which needs the namespace that HTML implies.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": identity, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{identity}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{identity}-\1"', text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    namespace = 'xmlns="http://www.w3.org/2000/svg" ' if standalone else ""
    return re.sub(r"<svg [^>]*?(viewBox)", rf"<svg {namespace}\1", text, count=1)


def blank(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """An empty figure in the house style, and its axes (an array of them if there are several columns)."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
    return figure, axes


def _reference(study: Study) -> float:
    return float(np.nanmean([cell["metrics"]["gold_reference"] for cell in study.cells]))


def _smooth(trajectory: Sequence[dict[str, Any]], window: int = 7) -> tuple[Any, Any]:
    """Running means of KL and true reward over the steps at which both are known."""
    rows = [(row["kl"], row["gold"]) for row in trajectory if row["kl"] is not None and row["gold"] is not None]
    if len(rows) < window:
        return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    kernel = np.ones(window) / window
    kl, gold = (np.convolve([row[i] for row in rows], kernel, mode="valid") for i in (0, 1))
    return kl, gold


def _mean_path(paths: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Mean over seeds at equal KL, up to the smallest KL that all seeds reached; KL is made monotone first."""
    usable = [(np.maximum.accumulate(kl), gold) for kl, gold in paths if len(kl)]
    if not usable:
        return np.array([]), np.array([])
    grid = np.linspace(max(kl[0] for kl, _ in usable), min(kl[-1] for kl, _ in usable), 80)
    return grid, np.mean([np.interp(grid, kl, gold) for kl, gold in usable], axis=0)


def draw_intervals(axes: Axes, found: list[dict[str, Any]], names: list[str], colour: str) -> None:
    """A dot and its interval on each line, from the top; unknown figures leave their line empty."""
    for place, one in enumerate(found):
        if one["value"] is None:
            continue
        axes.plot(one["value"], place, "o", color=colour)
        if one["low"] is not None:
            axes.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=1.6)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
