"""Style features of a completion (length, lists, …) that a reward may correlate with."""

from __future__ import annotations

import re
from collections.abc import Callable

from surefoot.data.messages import plain_text

__all__ = ["STYLE_FEATURES", "plain_text"]


def _count(pattern: str) -> Callable[[str], float]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: float(len(compiled.findall(text)))


STYLE_FEATURES: dict[str, Callable[[str], float]] = {
    "length in words": lambda text: float(len(text.split())),
    "list items": _count(r"^\s*(?:[-*•]|\d+[.)])\s"),
    "headings and bold": _count(r"^#{1,6}\s|\*\*[^*\n]+\*\*"),
    "question marks": _count(r"\?"),
    "exclamation marks": _count(r"!"),
    "numbers": _count(r"\d+"),
}
"""By the name shown; the first is the length. A new one is a function and a line here."""
