"""Figures: where data land in the drawing, on linear and logarithmic scales, and that every figure is sound SVG."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from surefoot.metrics.intervals import Interval
from surefoot.reports.axes import Axes
from surefoot.reports.drawing import COLOURS, Drawing, style_of
from surefoot.reports.figures import frame, name_rows, panels
from surefoot.reports.theory_figures import theory_figures

THEORY = Path(__file__).parents[2] / "docs" / "results" / "theory" / "theory.json"


def axes(**logs: bool) -> Axes:
    return Axes(Drawing(100, 100), 10, 20, 80, 60, (1.0, 100.0), (1.0, 100.0), **logs)


def test_where_data_land() -> None:
    assert axes().at(1.0, 100.0) == (10.0, 20.0)
    assert axes().at(50.5, 50.5) == (50.0, 50.0)
    assert axes(log_x=True, log_y=True).at(10.0, 10.0) == pytest.approx((50.0, 50.0))
    assert axes(log_x=True).at(10.0, 50.5) == pytest.approx((50.0, 50.0))


def test_what_is_unknown_is_not_drawn() -> None:
    drawn = axes()
    drawn.whisker(50.0, Interval(math.nan, 0.0, 1.0, 0), "red")
    drawn.mark(math.nan, 1.0, "red")
    drawn.error_bar(2.0, math.nan, 3.0, "red")
    drawn.curve([1.0, 2.0], [math.nan, 1.0], "red", 1.0)
    assert drawn.drawing.parts == []
    drawn.whisker(50.0, Interval(2.0, math.nan, math.nan, 1), "red")  # a value without an interval is a dot
    assert len(drawn.drawing.parts) == 1


def test_bars_stand_on_zero() -> None:
    drawn = Axes(Drawing(100, 100), 0, 0, 100, 100, (0.0, 2.0), (0.0, 4.0))
    drawn.bars([0.0, 1.0, 2.0], [4.0, 1.0], "red")
    assert 'x="0.5" y="0.0" width="49.0" height="100.0"' in drawn.drawing.parts[0]
    assert 'x="50.5" y="75.0" width="49.0" height="25.0"' in drawn.drawing.parts[1]


def test_no_two_curves_of_a_figure_look_alike() -> None:
    styles = [style_of(place) for place in range(2 * len(COLOURS))]
    assert len(set(styles)) == len(styles)


def test_frames_are_within_their_drawing() -> None:
    legend = [(f"a method of the name {k}", *style_of(k)) for k in range(9)]
    alone = frame((0.0, 1.0), (0.0, 1.0), "x", "y", legend)
    several = panels(["a", "b", "c"], (0.1, 1.0), (0.1, 1.0), "x", "y", legend, log=True)
    rows, middles = name_rows(["first", "second"], [(0.0, 1.0), (0.0, 1.0)], ["x", "x"], 0.5)
    for each in (alone, *several, *rows):
        assert 0 < each.left < each.right <= each.drawing.width
        assert 0 < each.top < each.bottom <= each.drawing.height - 36
    assert [rows[0].top < y < rows[0].bottom for y in middles] == [True, True]


@pytest.mark.parametrize("name", ["closed_form", "theorem", "estimated_variance", "frontier", "correlated"])
def test_the_figures_of_the_theory_are_sound(name: str) -> None:
    figure = theory_figures(json.loads(THEORY.read_text()))[name]
    root = ElementTree.fromstring(figure.svg(standalone=True))
    assert root.get("aria-label")
    places = [float(dot.get("cy", "nan")) for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert places
    assert all(0 <= place <= figure.height for place in places)
