"""Lines, areas, dots, bars and text as SVG; figures.py and axes.py compose them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["COLOURS", "GREY", "INK", "LABEL", "Drawing", "Legend", "style_of", "text_width"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5195", "#6B6B00")
"""Okabe and Ito's palette without its yellow, which is too light for lines, and two more; told apart by dashes too."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "5 2", "1 2", "9 2", "3 2")
GREY = "#6b6b72"
INK = "#1d1d1f"
LABEL = "#44444a"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LETTER = 6.9
"""Width of a letter at size 12, on the generous side."""
Points = Iterable[tuple[float, float]]
Legend = Sequence[tuple[str, str, str | None]]
"""(label, colour, dash) of each entry; a dot stands for it if the dash is None."""


def style_of(place: int) -> tuple[str, str]:
    """(colour, dash) of the place-th curve of a figure; a colour that comes again has another dash."""
    return COLOURS[place % len(COLOURS)], _DASHES[(place + place // len(COLOURS)) % len(_DASHES)]


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

    def bar(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        )

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", size: float = 12, colour: str = INK,
             halo: bool = False, turn: bool = False) -> None:  # fmt: skip
        """Words at their baseline; `turn` writes them upwards, `halo` keeps lines behind them from touching."""
        more = ' paint-order="stroke" stroke="#fff" stroke-width="4"' if halo else ""
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
            if dash is None:
                self.dot(x + 15, y - 4, 4.6, colour)
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
