"""Render the HTML templates with escaped values; pages load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from surefoot.reports.drawing import dark_rules

__all__ = ["render", "script"]

_ENVIRONMENT = Environment(
    loader=PackageLoader("surefoot.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def _code(text: str) -> Markup:
    """Escaped text in which `words` between backticks are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


_ENVIRONMENT.filters["code"] = _code
_ENVIRONMENT.globals["dark_figures"] = Markup(dark_rules())


def render(template: str, **values: Any) -> str:
    """Render one page; a value that the template names and that isn't given is an error."""
    return _ENVIRONMENT.get_template(template).render(**values)


def script(name: str) -> dict[str, Markup]:
    """A template folder's script, and the hash by which a page's security policy lets it run, and nothing else."""
    source = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return {"script": Markup(source), "script_hash": Markup(f"sha256-{digest}")}
