"""Read docstrings, which are written as plain text with Markdown's backticks, as reStructuredText.

Words in single backticks become code; signs that reStructuredText would read as markup (`*`, `|`, a trailing `_`) are
escaped outside of code. Doctests and indented formulas are left as they are.
"""

import re
from typing import Any

_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_MARKUP = re.compile(r"\*|\||(?<=\w)_(?=\W|$)")


def to_rst(lines: list[str]) -> list[str]:
    """The docstring's lines in reStructuredText."""
    made: list[str] = []
    doctest = formula = fence = False
    for line in lines:
        if line.startswith("```"):
            fence = not fence
            made += [".. code-block:: python", ""] if fence else [""]
            continue
        if fence or line == "Example:":
            made.append(f"    {line}" if fence else "**Example**")
            continue
        blank = not line.strip()
        starts = not doctest and line.lstrip().startswith(">>>")
        before_blank = not made or not made[-1].strip()
        doctest = not blank and (doctest or starts)
        formula = line.startswith("    ") and (formula or before_blank) if not blank else formula
        if formula and not doctest and not blank and before_blank and "::" not in made[-2:]:
            made += ["::", ""]
        if starts and not before_blank:
            made.append("")
        made.append(line if doctest or formula else _inline(line))
    return made


def _inline(line: str) -> str:
    """Escape one line of prose, but for field lists (`:param x:`), whose names stay."""
    field = re.match(r"\s*:[^`]*?:(?=\s|$)", line)
    head = field.group(0) if field else ""
    parts = _CODE.split(line[len(head) :])
    for place, part in enumerate(parts):
        parts[place] = f"``{part.strip('`')}``" if place % 2 else _MARKUP.sub(r"\\\g<0>", part)
    return head + "".join(parts)


def convert(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    # Before napoleon (priority 500), whose own output is reStructuredText already.
    app.connect("autodoc-process-docstring", convert, priority=400)
    return {"parallel_read_safe": True}
