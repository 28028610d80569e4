"""Fill the templates; everything that comes from models or users is escaped, and nothing is fetched from outside."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from surefoot.reports.figures import svg

__all__ = ["picture", "render"]

_ENVIRONMENT = Environment(
    loader=PackageLoader("surefoot.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def render(template: str, **values: Any) -> str:
    """One page; an undefined value is an error, not a blank."""
    return _ENVIRONMENT.get_template(template).render(**values)


def picture(figure: Figure, identity: str, words: str) -> Markup:
    """The figure as inline SVG, with `words` for readers who can't see it."""
    drawing = svg(figure, identity).replace("<svg ", '<svg role="img" aria-label="{}" ', 1)
    return Markup(drawing.replace("{}", str(Markup.escape(words)), 1))
