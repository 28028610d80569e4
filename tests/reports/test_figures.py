"""Figures: where data land in the drawing, on linear and logarithmic scales, and that every figure is sound SVG."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from surefoot.metrics.intervals import Interval
from surefoot.reports.axes import Axes
from surefoot.reports.drawing import COLOURS, DARK, Drawing, dark_rules, style_of, text_width
from surefoot.reports.figures import frame, line_of_words, name_rows, panels, word_rows
from surefoot.reports.forecast_figures import forecast_figure
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


def in_grey(figure: Drawing) -> list[str]:
    """What is drawn of the bands, without any colour."""
    return [re.sub(r"#[0-9a-fA-F]{6}|hatch\w+|[MLZ][\d. ]*", "", part) for part in figure.parts]


def test_bands_are_told_apart_in_grey() -> None:
    """By the lines that fill them and by the dashes of their edges, for as many as a figure draws."""
    seen = []
    for place in range(5):
        drawn = axes()
        drawn.band([1.0, 50.0], [1.0, 2.0], [3.0, 60.0], style_of(place), place)
        seen.append(tuple(in_grey(drawn.drawing)))
    assert len(set(seen)) == len(seen)
    fills = {parts[1:-2] for parts in seen}
    edges = {parts[-1] for parts in seen}
    assert len(fills) == 5
    assert len(edges) == 5


def test_symbols_of_neighbouring_series_differ_in_shape() -> None:
    drawings = [Drawing(10, 10) for _ in range(5)]
    for place, drawing in enumerate(drawings):
        drawing.symbol(5, 5, 4, COLOURS[0], place)
    assert len({drawing.parts[0] for drawing in drawings}) == 5


def test_no_line_passes_through_the_words_of_a_row() -> None:
    drawn = word_rows(3, (0.0, 1.0), "share", "words", 0.5)
    heights = [line_of_words(drawn, place, "a method", "12%") for place in range(3)]
    words = [float(found) for part in drawn.drawing.parts for found in re.findall(r'<text[^>]* y="([\d.]+)"', part)][
        -6:
    ]
    lines = [
        (float(a), float(b)) for part in drawn.drawing.parts for a, b in re.findall(r'd="M\S+ (\S+)L\S+ (\S+)"', part)
    ]
    assert len(lines) >= 3 * 7
    for baseline in words:  # a letter reaches from 10 units above its baseline to 3 below it
        assert not [one for one in lines if one[0] < baseline + 3 and one[1] > baseline - 10]
    assert all(any(top < y < bottom for top, bottom in lines) for y in heights)


def test_a_long_name_is_shortened_to_its_room() -> None:
    (drawn,), _ = name_rows(["a setting of a very long name and more · a source · 12 nats"], [(0.0, 1.0)], ["x"], 0.5)
    (name,) = [part for part in drawn.drawing.parts if "setting" in part]
    assert "…</text>" in name
    assert text_width(re.sub("<[^>]*>", "", name), 11.5) <= drawn.left - 8


def test_every_colour_of_a_figure_has_a_dark_one() -> None:
    known = {**DARK}
    assert set(COLOURS) <= set(known)
    drawn = word_rows(2, (0.0, 1.0), "share", "words", 0.5)
    used = re.findall(r'(?:fill|stroke)="(#[^"]*)"', drawn.drawing.svg())
    assert used
    assert set(used) <= set(known)
    for light, dark in known.items():
        assert f'svg [stroke="{light}"]{{stroke:{dark}}}' in dark_rules()


def test_frames_are_within_their_drawing() -> None:
    legend = [(f"a method of the name {k}", *style_of(k)) for k in range(9)]
    alone = frame((0.0, 1.0), (0.0, 1.0), "x", "y", legend)
    several = panels(["a", "b", "c"], (0.1, 1.0), (0.1, 1.0), "x", "y", legend, log=True)
    rows, middles = name_rows(["first", "second"], [(0.0, 1.0), (0.0, 1.0)], ["x", "x"], 0.5)
    for each in (alone, *several, *rows):
        assert 0 < each.left < each.right <= each.drawing.width
        assert 0 < each.top < each.bottom <= each.drawing.height - 36
    assert [rows[0].top < y < rows[0].bottom for y in middles] == [True, True]


@pytest.mark.parametrize(("count", "banded"), [(4, 4), (5, 2)])
def test_of_many_forecasts_two_have_a_band(count: int, banded: int) -> None:
    """The baseline and the one that ends highest; each band has two edges."""
    names = ["vanilla", "variance_aware", "lcb:1", "variance_aware_lcb:1", "uwo:1"][:count]
    rows = [
        {"objective": name, "kl_budget": 1.0,
         "draws": {"gain": {"value": place / 10, "low": place / 10 - 0.1, "high": place / 10 + 0.1}}}
        for place, name in enumerate(names)
    ]  # fmt: skip
    drawn = forecast_figure(
        {"rows": rows, "baseline": "vanilla", "best_of_n": [], "kl_budgets": [1.0]}, "draws", "gain"
    )
    assert len([part for part in drawn.parts if 'stroke-width="0.9"' in part]) == 2 * banded


@pytest.mark.parametrize("name", ["closed_form", "theorem", "estimated_variance", "frontier", "correlated"])
def test_the_figures_of_the_theory_are_sound(name: str) -> None:
    figure = theory_figures(json.loads(THEORY.read_text()))[name]
    root = ElementTree.fromstring(figure.svg(standalone=True))
    assert root.get("aria-label")
    places = [float(dot.get("cy", "nan")) for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert places
    assert all(0 <= place <= figure.height for place in places)
