"""Matplotlib figures in the house style as inline SVG; a study's page draws its own (drawing.py)."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surefoot.reports.drawing import Drawing

__all__ = ["blank", "draw_intervals", "svg"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's palette."""
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


def svg(figure: Figure | Drawing, identity: str, *, standalone: bool = False) -> str:
    """The figure as an <svg> element that scales with its box; ids are made unique by `identity`.

    Args:
        standalone: for a file of its own, which needs the namespace that HTML implies.
    """
    if isinstance(figure, Drawing):
        return figure.svg(standalone=standalone)
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
