"""Draw a forecast: gain and prompt risk against KL, for the best objective of each family."""

from __future__ import annotations

import math
from typing import Any

from surefoot.reports.axes import padded
from surefoot.reports.drawing import INK, Drawing, style_of
from surefoot.reports.figures import frame, listed
from surefoot.reports.wording import number

__all__ = ["forecast_figure", "shown_objectives"]

Row = dict[str, Any]
Point = tuple[float, float, float, float]
"""(KL, value, low, high)."""
_BANDS = 4
"""Up to so many curves each have their band."""


def shown_objectives(forecast: dict[str, Any], judge: str) -> list[str]:
    """The baseline, weighting, and the best of the pessimistic, of the weighted pessimistic and of the others."""
    rows = [row for row in forecast["rows"] if row[judge] is not None and row[judge]["gain"]["value"] is not None]
    names = list(dict.fromkeys(row["objective"] for row in rows))
    best = {name: max(row[judge]["gain"]["value"] for row in rows if row["objective"] == name) for name in names}
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(_family(name, forecast["baseline"]), []).append(name)
    chosen = [max(family, key=lambda name: best[name]) for family in families.values()]
    return [name for name in names if name in chosen]


def _family(name: str, baseline: str) -> str:
    kind = name.partition(":")[0]
    known = (baseline, "variance_aware", "lcb", "variance_aware_lcb")
    return kind if kind in known else "others"


def forecast_figure(forecast: dict[str, Any], judge: str, figure: str) -> Drawing:
    """Gain (with bands) or prompt risk against KL.

    Args:
        judge: "gold" or "draws". figure: "gain" or "prompt_risk".
    """
    names = shown_objectives(forecast, judge)
    curves = {name: _points(forecast["rows"], name, judge, figure) for name in names}
    dots = [] if figure != "gain" else [row for row in forecast["best_of_n"] if _is_shown(row, forecast, judge)]
    values = [value for points in curves.values() for _, *rest in points for value in rest]
    values += [row["gain"]["value"] for row in dots]
    is_risk = figure == "prompt_risk"
    legend: list[tuple[str, str, str | int]] = [
        (name.replace("_", "-"), *style_of(place)) for place, name in enumerate(names)
    ]
    most = max([forecast["kl_budgets"][-1], *(row["kl"] for row in dots)])
    span = (0.0, max(0.1, *padded(values))) if is_risk else padded(values, include=0.0)
    axes = frame(
        (0.0, 1.03 * most),
        span,
        "KL from the reference (nats per sequence)",
        "share of prompts worse off" if is_risk else "gain over the reference",
        [*legend, *([("best of n", INK, 0)] if dots else [])],
        height=206,
    )
    if not is_risk:
        axes.level(0.0)
    banded = [] if is_risk else _banded(curves, forecast["baseline"])
    for place, (name, points) in enumerate(curves.items()):
        colour, dash = style_of(place)
        kl, middle, low, high = zip(*points, strict=True)
        if name in banded:
            axes.band(kl, low, high, (colour, dash), place)
        axes.curve(kl, middle, colour, 2.4, dash=dash)
    for row in dots:
        axes.mark(row["kl"], row["gain"]["value"], INK, radius=3.4)
    ends = [f"{name} {number(points[-1][1])}" for name, points in curves.items() if points]
    axes.drawing.words = listed(f"{'Prompt risk' if is_risk else 'Gain'} against KL, at the largest budget", ends)
    return axes.drawing


def _banded(curves: dict[str, list[Point]], baseline: str) -> list[str]:
    """Curves with a band: all, or of many the baseline and the one that ends highest."""
    if len(curves) <= _BANDS:
        return list(curves)
    return [baseline, max(curves, key=lambda name: curves[name][-1][1])]


def _is_shown(row: Row, forecast: dict[str, Any], judge: str) -> bool:
    return bool(row["judge"] == judge and row["objective"] == forecast["baseline"])


def _points(rows: list[Row], name: str, judge: str, figure: str) -> list[Point]:
    """Points from the reference on; budgets that can't be reached are left out."""
    points = [(0.0, 0.0, 0.0, 0.0)]
    for row in rows:
        held = row[judge]
        if row["objective"] == name and held is not None and held[figure]["value"] is not None:
            value, low, high = (held[figure][key] for key in ("value", "low", "high"))
            points.append((row["kl_budget"], value, _or(low, value), _or(high, value)))
    return points


def _or(value: float | None, other: float) -> float:
    return other if value is None or math.isnan(value) else value
