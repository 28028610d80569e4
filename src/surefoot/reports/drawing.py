"""Lines, areas, dots, bars and text as SVG; figures.py and axes.py compose them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["COLOURS", "DARK", "GREY", "GRID", "INK", "LABEL", "PAPER", "RULE", "Drawing", "Legend", "dark_rules",
           "style_of", "text_width"]  # fmt: skip

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5195", "#6B6B00")
"""Okabe and Ito's palette without its yellow, which is too light for lines, and two more; told apart by dashes too."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 3", "5 2", "1 2", "9 2", "3 2")
GREY = "#6b6b72"
INK = "#1d1d1f"
LABEL = "#44444a"
GRID = "#ececef"
RULE = "#9a9aa0"
PAPER = "#ffffff"
DARK = {
    **dict(zip(COLOURS, ("#ff9a57", "#4fa8e8", "#34c99a", "#e8a3cb", "#a5dcfa", "#f5c04f", "#f2f2f2", "#bd97d4",
                         "#cccc55"), strict=True)),
    GREY: "#a6a6ae", INK: "#ececee", LABEL: "#c6c6cc", GRID: "#2b2d33", RULE: "#7a7a82", PAPER: "#16181c",
}  # fmt: skip
"""Every colour of the figures, and what a page shows in its place where the reader prefers a dark scheme."""
_HATCHES = ((0, 0), (45, 7), (135, 7), (90, 5), (0, 5), (45, 4), (135, 4))
"""(angle in degrees, distance) of the lines that fill a band, in turn; the first has none."""
_SHAPES = ("circle", "M-{r} -{r}H{r}V{r}H-{r}Z", "M0 -{d}L{d} 0L0 {d}L-{d} 0Z", "M0 -{d}L{d} {r}H-{d}Z",
           "M0 {d}L{d} -{r}H-{d}Z")  # fmt: skip
"""Circle, square, diamond, and triangles up and down, as paths about 0; r is the radius, d somewhat more."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LETTER = 6.9
"""Width of a letter at size 12, on the generous side."""
Points = Iterable[tuple[float, float]]
Legend = Sequence[tuple[str, str, str | int]]
"""(label, colour, dash of its line or place of its symbol) of each entry."""


def style_of(place: int) -> tuple[str, str]:
    """(colour, dash) of the place-th curve of a figure; a colour that comes again has another dash."""
    return COLOURS[place % len(COLOURS)], _DASHES[(place + place // len(COLOURS)) % len(_DASHES)]


def dark_rules() -> str:
    """CSS rules that give the figures of a page their dark colours; a picture of its own stays light."""
    return "".join(
        f'svg [{paint}="{light}"]{{{paint}:{dark}}}' for light, dark in DARK.items() for paint in ("fill", "stroke")
    )


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

    def area(self, points: Points, colour: str, opacity: float, hatch: int = 0) -> None:
        """A filled shape; `hatch` chooses lines across it (0: none), so that shapes differ in grey too."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points if not math.isnan(x + y))
        if not way:
            return
        self.parts.append(f'<path d="M{way}Z" fill="{colour}" fill-opacity="{opacity}"/>')
        angle, distance = _HATCHES[hatch % len(_HATCHES)]
        if distance:
            # Of the content: a page has many figures, and the first pattern of a name serves all of them.
            name = f"hatch{zlib.crc32(f'{way}{colour}{hatch}'.encode()):08x}"
            self.parts.append(
                f'<pattern id="{name}" width="{distance}" height="{distance}" patternUnits="userSpaceOnUse" '
                f'patternTransform="rotate({angle})"><path d="M0 0V{distance}" stroke="{colour}" stroke-width="1.1" '
                f'stroke-opacity="0.55"/></pattern><path d="M{way}Z" fill="url(#{name})"/>'
            )

    def dot(
        self, x: float, y: float, radius: float, colour: str, *, opacity: float = 1.0, hollow: bool = False
    ) -> None:
        if math.isnan(x + y):
            return
        faint = f' fill-opacity="{opacity}"' if opacity < 1 else ""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {_fill(colour, hollow)}{faint}/>')

    def symbol(self, x: float, y: float, radius: float, colour: str, place: int, *, hollow: bool = False) -> None:
        """A dot of the place-th shape, so that series differ in grey too."""
        shape = _SHAPES[place % len(_SHAPES)]
        if shape == "circle" or math.isnan(x + y):
            self.dot(x, y, radius, colour, hollow=hollow)
            return
        way = shape.format(r=f"{0.85 * radius:.1f}", d=f"{1.2 * radius:.1f}")
        self.parts.append(f'<path d="{way}" transform="translate({x:.1f} {y:.1f})" {_fill(colour, hollow)}/>')

    def bar(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        )

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", size: float = 12, colour: str = INK,
             halo: bool = False, turn: bool = False) -> None:  # fmt: skip
        """Words at their baseline; `turn` writes them upwards, `halo` keeps lines behind them from touching."""
        more = f' paint-order="stroke" stroke="{PAPER}" stroke-width="4"' if halo else ""
        more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{aligned}{more}>{escape(words)}</text>'
        )

    def legend(self, entries: Legend, left: float, top: float) -> float:
        """Entries side by side, in as many rows as needed; returns the y below them."""
        x, y = left, top
        for label, colour, dash in entries:
            wide = 26 + text_width(label)
            if x > left and x + wide > self.width:
                x, y = left, y + 17
            if isinstance(dash, int):
                self.symbol(x + 15, y - 4, 4.6, colour, dash)
            else:
                self.line([(x, y - 4), (x + 20, y - 4)], colour, 2.6, dash=dash)
            self.text(x + 25, y, label)
            x += wide + 14
        return y + 8

    def svg(self, *, standalone: bool = False) -> str:
        """The <svg> element; as a file of its own it names its namespace and has a white ground."""
        space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
        ground = '<rect width="100%" height="100%" fill="#fff"/>' if standalone else ""
        return (
            f'<svg{space} viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.words)}" '
            f'font-family="{_FONT}" stroke-linejoin="round">{ground}{"".join(self.parts)}</svg>'
        )


def _fill(colour: str, hollow: bool) -> str:
    return f'fill="{PAPER}" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
