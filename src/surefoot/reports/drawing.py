"""A few shapes on a coordinate system, written as SVG: light enough for hundreds of figures on one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["COLOURS", "DASHES", "GREY", "Axes", "Drawing", "padded", "ticks_of"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5195", "#6B6B00")
"""Okabe and Ito's palette without its yellow, which is too light for lines, and two more; told apart by dashes too."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "5 2", "1 2", "9 2", "3 2")
GREY = "#6b6b72"
INK = "#1d1d1f"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LETTER = 6.9
"""Width of a letter at size 12, on the generous side."""
Points = Iterable[tuple[float, float]]


def text_width(text: str, size: float = 12) -> float:
    """A generous estimate, in the drawing's units."""
    return len(text) * _LETTER * size / 12


@dataclass
class Drawing:
    """Shapes in units of about a pixel; it scales with its box.

    Args:
        words: what the figure shows, for readers who can't see it.
    """

    width: float
    height: float
    words: str = ""
    parts: list[str] = field(default_factory=list)

    def line(self, points: Points, colour: str, width: float = 1.0, *, opacity: float = 1.0, dash: str = "") -> None:
        """A polyline; unknown points (NaN) break it."""
        runs: list[list[str]] = [[]]
        for x, y in points:
            if math.isnan(x) or math.isnan(y):
                runs.append([])
            else:
                runs[-1].append(f"{x:.1f} {y:.1f}")
        way = "".join(f"M{'L'.join(run)}" for run in runs if len(run) > 1)
        if way:
            more = (f' stroke-opacity="{opacity}"' if opacity < 1 else "") + (
                f' stroke-dasharray="{dash}"' if dash else ""
            )
            self.parts.append(f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="{width}"{more}/>')

    def area(self, points: Points, colour: str, opacity: float) -> None:
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points if not math.isnan(x + y))
        if way:
            self.parts.append(f'<path d="M{way}Z" fill="{colour}" fill-opacity="{opacity}"/>')

    def dot(
        self, x: float, y: float, radius: float, colour: str, *, opacity: float = 1.0, hollow: bool = False
    ) -> None:
        if math.isnan(x + y):
            return
        fill = f'fill="#fff" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
        faint = f' fill-opacity="{opacity}"' if opacity < 1 else ""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {fill}{faint}/>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", size: float = 12, colour: str = INK,
             halo: bool = False, turn: bool = False) -> None:  # fmt: skip
        """Words at their baseline; `turn` writes them upwards, `halo` keeps lines behind them from touching."""
        more = ' paint-order="stroke" stroke="#fff" stroke-width="4"' if halo else ""
        more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{aligned}{more}>{escape(words)}</text>'
        )

    def legend(self, entries: Sequence[tuple[str, str, str | None]], left: float, top: float) -> float:
        """(label, colour, dash) side by side, in as many rows as needed; returns the y below them.

        A line with that dash stands before the label, or a dot if it is None.
        """
        x, y = left, top
        for label, colour, dash in entries:
            wide = 26 + text_width(label)
            if x > left and x + wide > self.width:
                x, y = left, y + 17
            if dash is None:
                self.dot(x + 15, y - 4, 4.6, colour)
            else:
                self.line([(x, y - 4), (x + 20, y - 4)], colour, 2.6, dash=dash)
            self.text(x + 25, y, label)
            x += wide + 10
        return y + 8

    def svg(self, *, standalone: bool = False) -> str:
        """The <svg> element; as a file of its own it names its namespace and has a white ground."""
        space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
        ground = '<rect width="100%" height="100%" fill="#fff"/>' if standalone else ""
        return (
            f'<svg{space} viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.words)}" '
            f'font-family="{_FONT}" stroke-linejoin="round">{ground}{"".join(self.parts)}</svg>'
        )


@dataclass(frozen=True)
class Axes:
    """A rectangle of a drawing with a linear scale in each direction."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Data to the drawing's units."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> list[tuple[float, float]]:
        return [self.at(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]

    def x_axis(self, label: str, *, percent: bool = False, count: int = 5) -> None:
        """Ticks with faint grid lines, and the label below."""
        base = self.top + self.height
        for tick in ticks_of(*self.x, count):
            x, _ = self.at(tick, self.y[0])
            self.drawing.line([(x, self.top), (x, base)], "#ececef")
            self.drawing.text(x, base + 15, _tick(tick, percent), anchor="middle", size=11, colour=GREY)
        self.drawing.line([(self.left, base), (self.left + self.width, base)], "#9a9aa0")
        self.drawing.text(self.left + self.width / 2, base + 32, label, anchor="middle", size=11.5, colour="#44444a")

    def y_axis(self, label: str, count: int = 5) -> None:
        for tick in ticks_of(*self.y, count):
            _, y = self.at(self.x[0], tick)
            self.drawing.line([(self.left, y), (self.left + self.width, y)], "#ececef")
            self.drawing.text(self.left - 6, y + 4, _tick(tick, False), anchor="end", size=11, colour=GREY)
        if label:
            middle = self.top + self.height / 2
            self.drawing.text(11, middle, label, anchor="middle", size=11.5, colour="#44444a", turn=True)

    def level(self, y: float, words: str = "") -> None:
        """A dashed horizontal line, with words at its right end."""
        _, at = self.at(self.x[0], y)
        self.drawing.line([(self.left, at), (self.left + self.width, at)], GREY, dash="4 3")
        if words:
            self.drawing.text(self.left + self.width, at - 4, words, anchor="end", size=10.5, colour=GREY)

    def upright(self, x: float) -> None:
        """A dashed vertical line."""
        at, _ = self.at(x, self.y[0])
        self.drawing.line([(at, self.top), (at, self.top + self.height)], GREY, dash="4 3")


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


def padded(values: Iterable[float], include: float | None = None, share: float = 0.05) -> tuple[float, float]:
    """The range of the known values with a margin; (0, 1) without any."""
    known = [float(value) for value in values if math.isfinite(value)]
    if include is not None:
        known.append(include)
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = share * (high - low) or 0.5
    return low - margin, high + margin


def _tick(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:g}".replace("-", "−")
