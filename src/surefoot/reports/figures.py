"""Layouts that all figures share: a frame with a legend, panels side by side, and rows of intervals."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from surefoot.reports.axes import Axes, Span
from surefoot.reports.drawing import LABEL, Drawing, Legend, text_width

__all__ = ["WIDTH", "drawn", "frame", "line_of_words", "listed", "name_rows", "panels", "word_rows"]

WIDTH = 420.0
_LEFT = 46.0
_WORD_ROW = 40.0
_WORDS = 17.0
"""Height of the words within it."""


def drawn(drawing: Drawing) -> Markup:
    """The drawing as markup for a page."""
    return Markup(drawing.svg())


def frame(
    x: Span, y: Span, x_label: str, y_label: str, legend: Legend = (), *, height: float = 250.0, log: bool = False
) -> Axes:
    """One frame with both axes, and a legend above."""
    drawing = Drawing(WIDTH, 0)
    top = drawing.legend(legend, 0, 14) if legend else 8.0
    drawing.height = top + height + 40
    axes = Axes(drawing, _LEFT, top, WIDTH - _LEFT - 8, height, x, y, log, log)
    axes.y_axis(y_label)
    axes.x_axis(x_label)
    return axes


def panels(
    titles: Sequence[str], x: Span, y: Span, x_label: str, y_label: str, legend: Legend, *, log: bool = False,
    ticks: Sequence[float] | None = None, width: float = 230.0, height: float = 200.0,
) -> list[Axes]:  # fmt: skip
    """Frames of one scale side by side, each with a title, and a legend above them."""
    drawing = Drawing(_LEFT + len(titles) * width, 0)
    top = drawing.legend(legend, 0, 14) + 16
    drawing.height = top + height + 40
    made = []
    for place, title in enumerate(titles):
        axes = Axes(drawing, _LEFT + place * width, top, width - 16, height, x, y, log, log)
        axes.y_axis("" if place else y_label, numbers=not place)
        axes.x_axis(x_label, ticks=ticks)
        drawing.text(axes.left + axes.width / 2, top - 6, title, anchor="middle", size=11.5, colour=LABEL)
        made.append(axes)
    return made


def word_rows(count: int, x: Span, label: str, words: str, mark: float | None, *, percent: bool = False) -> Axes:
    """A frame with a row for each thing: its name and figures on a line (`line_of_words`), what is drawn below it.

    Args:
        words: the figure for readers who can't see it. mark: where to draw a dashed vertical line.
    """
    drawing = Drawing(WIDTH, 4 + _WORD_ROW * count + 36, words)
    axes = Axes(drawing, 8, 4, WIDTH - 16, _WORD_ROW * count, x, (0.0, 1.0))
    # No line passes behind the words of a row.
    rows = [(top + _WORDS, top + _WORD_ROW - 5) for top in (axes.top + _WORD_ROW * place for place in range(count))]
    axes.x_axis(label, percent=percent, rows=rows)
    if mark is not None:
        axes.upright(mark, rows)
    return axes


def line_of_words(axes: Axes, place: int, label: str, figures: str) -> float:
    """Write the words of a row; returns the y at which to draw."""
    top = axes.top + _WORD_ROW * place
    room = axes.drawing.width - text_width(figures, 11.5) - 8
    axes.drawing.text(0, top + 12, _cut(label, room, 12))
    axes.drawing.text(axes.drawing.width, top + 12, figures, anchor="end", size=11.5, colour=LABEL)
    return top + 26


def name_rows(
    names: Sequence[str], spans: Sequence[Span], labels: Sequence[str], mark: float, legend: Legend = (), *,
    row: float = 24.0,
) -> tuple[list[Axes], list[float]]:  # fmt: skip
    """Frames side by side with a row for each name, which stands at the left of the first frame.

    Args:
        spans, labels: of the frames' x axes. mark: where to draw a dashed vertical line.

    Returns:
        The frames, and the y at which to draw each row.
    """
    drawing = Drawing(WIDTH, 0)
    top = drawing.legend(legend, 0, 14) if legend else 8.0
    left = min(0.45 * drawing.width, 12 + max(text_width(name, 11.5) for name in names))
    height = row * len(names)
    drawing.height = top + height + 36
    width = (drawing.width - left) / len(spans)
    made = []
    for place, (span, label) in enumerate(zip(spans, labels, strict=True)):
        axes = Axes(drawing, left + place * width, top, width - 8, height, span, (0.0, 1.0))
        axes.x_axis(label, count=max(2, 5 // len(spans)))
        axes.upright(mark)
        made.append(axes)
    middles = [top + row * (place + 0.5) for place in range(len(names))]
    for name, y in zip(names, middles, strict=True):
        drawing.text(left - 8, y + 4, _cut(name, left - 8, 11.5), anchor="end", size=11.5)
    return made, middles


def _cut(words: str, room: float, size: float) -> str:
    """Words, shortened where they would be wider than `room`."""
    kept = words
    while len(kept) > 1 and text_width(kept, size) > room:
        kept = f"{kept[:-2]}…"
    return kept


def listed(title: str, parts: Sequence[str]) -> str:
    """A title and its parts as one sentence, for readers who can't see the figure."""
    return f"{title}: {'; '.join(parts)}."
