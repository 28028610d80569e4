"""A rectangle of a drawing with a scale in each direction: axes, reference lines, curves, bands and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from surefoot.metrics.intervals import Interval
from surefoot.reports.drawing import GREY, GRID, LABEL, RULE, Drawing

__all__ = ["DASH", "Axes", "decades", "padded", "ticks_of"]

DASH = "4 3"
"""Of reference lines."""
Span = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """A rectangle with a linear or logarithmic scale in each direction.

    Args:
        left, top, width, height: in the drawing's units.
        x, y: data at the left and right, and at the bottom and top. log_x, log_y: logarithmic, of positive data.
    """

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: Span
    y: Span
    log_x: bool = False
    log_y: bool = False

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Data to the drawing's units."""
        across, up = _share(x, self.x, self.log_x), _share(y, self.y, self.log_y)
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> list[tuple[float, float]]:
        return [self.at(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]

    def x_axis(
        self, label: str, *, percent: bool = False, count: int = 5, ticks: Sequence[float] | None = None,
        rows: Sequence[Span] | None = None,
    ) -> None:  # fmt: skip
        """Ticks with faint grid lines, and the label below.

        Args:
            rows: (top, bottom) of each stretch that has grid lines, in the drawing's units; all of it if None.
        """
        for tick in _ticks(self.x, self.log_x, count) if ticks is None else ticks:
            x, _ = self.at(tick, self.y[0])
            for top, bottom in ((self.top, self.bottom),) if rows is None else rows:
                self.drawing.line([(x, top), (x, bottom)], GRID)
            self.drawing.text(x, self.bottom + 15, _tick(tick, percent), anchor="middle", size=11, colour=GREY)
        self.drawing.line([(self.left, self.bottom), (self.right, self.bottom)], RULE)
        middle = self.left + self.width / 2
        self.drawing.text(middle, self.bottom + 32, label, anchor="middle", size=11.5, colour=LABEL)

    def y_axis(self, label: str, count: int = 5, *, numbers: bool = True) -> None:
        """Ticks with faint grid lines, and the label upwards at the left.

        Args:
            numbers: whether to write the ticks' values.
        """
        for tick in _ticks(self.y, self.log_y, count):
            _, y = self.at(self.x[0], tick)
            self.drawing.line([(self.left, y), (self.right, y)], GRID)
            if numbers:
                self.drawing.text(self.left - 6, y + 4, _tick(tick, False), anchor="end", size=11, colour=GREY)
        if label:
            middle = self.top + self.height / 2
            self.drawing.text(self.left - 37, middle, label, anchor="middle", size=11.5, colour=LABEL, turn=True)

    def level(self, y: float) -> None:
        """A dashed horizontal line."""
        _, at = self.at(self.x[0], y)
        self.drawing.line([(self.left, at), (self.right, at)], GREY, dash=DASH)

    def upright(self, x: float, rows: Sequence[Span] | None = None) -> None:
        """A dashed vertical line; `rows` as in `x_axis`."""
        at, _ = self.at(x, self.y[0])
        for top, bottom in ((self.top, self.bottom),) if rows is None else rows:
            self.drawing.line([(at, top), (at, bottom)], GREY, dash=DASH)

    def diagonal(self) -> None:
        """A dashed line where both scales have the same value."""
        low, high = max(self.x[0], self.y[0]), min(self.x[1], self.y[1])
        self.drawing.line([self.at(low, low), self.at(high, high)], GREY, dash=DASH)

    def curve(
        self, xs: Iterable[float], ys: Iterable[float], colour: str, width: float, *, dash: str = "",
        opacity: float = 1.0,
    ) -> None:  # fmt: skip
        self.drawing.line(self.path(xs, ys), colour, width, dash=dash, opacity=opacity)

    def band(
        self, xs: Sequence[float], low: Iterable[float], high: Iterable[float], style: tuple[str, str], hatch: int = 0
    ) -> None:
        """The area between two curves, bounded by thin lines.

        Args:
            style: (colour, dash) of the curve in its middle, which its edges share.
            hatch: which lines fill it (`Drawing.area`).
        """
        colour, dash = style
        below, above = self.path(xs, low), self.path(xs, high)
        self.drawing.area([*above, *reversed(below)], colour, 0.13, hatch)
        for edge in (below, above):
            self.drawing.line(edge, colour, 0.9, dash=dash, opacity=0.75)

    def mark(self, x: float, y: float, colour: str, *, radius: float = 3.2, opacity: float = 1.0) -> None:
        """A dot at a point of the data."""
        self.drawing.dot(*self.at(x, y), radius, colour, opacity=opacity)

    def error_bar(self, x: float, low: float, high: float, colour: str) -> None:
        """An upright interval at x."""
        self.drawing.line([self.at(x, low), self.at(x, high)], colour)

    def whisker(self, y: float, interval: Interval, colour: str) -> None:
        """A value as a dot with its interval, at a height in the drawing's units; nothing if the value is unknown."""
        if math.isnan(interval.value):
            return
        if not math.isnan(interval.low):
            self.drawing.line([(self.at(end, 0)[0], y) for end in (interval.low, interval.high)], colour, 2.2)
        self.drawing.dot(self.at(interval.value, 0)[0], y, 4.2, colour)

    def bars(self, edges: Sequence[float], heights: Sequence[float], colour: str) -> None:
        """A bar from 0 between each two neighbouring edges, with a gap of one unit."""
        for start, end, height in zip(edges[:-1], edges[1:], heights, strict=True):
            (left, top), (right, bottom) = self.at(start, height), self.at(end, 0)
            self.drawing.bar(left + 0.5, top, right - left - 1, bottom - top, colour)


def ticks_of(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high.

    >>> ticks_of(0.0, 1.0), ticks_of(-0.3, 9.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 2.0, 4.0, 6.0, 8.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda each: abs(each - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten from low to high, at most about `count` of them.

    >>> decades(0.002, 20.0), decades(1e-8, 1.0, 4)
    ([0.01, 0.1, 1.0, 10.0], [1e-08, 1e-06, 0.0001, 0.01, 1.0])
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / count)))]


def padded(values: Iterable[float], include: float | None = None, share: float = 0.05) -> Span:
    """The range of the known values with a margin; (0, 1) without any."""
    known = [float(value) for value in values if math.isfinite(value)]
    if include is not None:
        known.append(include)
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = share * (high - low) or 0.5
    return low - margin, high + margin


def _share(value: float, span: Span, log: bool) -> float:
    """Where a value lies, 0 at the start of the span and 1 at its end."""
    if log:
        return math.log(value / span[0]) / math.log(span[1] / span[0])
    return (value - span[0]) / (span[1] - span[0])


def _ticks(span: Span, log: bool, count: int) -> list[float]:
    return decades(*span, count) if log else ticks_of(*span, count)


def _tick(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}"
    text = f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:g}"
    return text.replace("-", "−")
