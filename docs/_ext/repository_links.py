"""Let pages link to files of the repository as they do on a code host.

SECURITY.md, CONTRIBUTING.md and CHANGELOG.md lie above docs/, where a code host looks for them. Their pages of the
site have their text, and links to them from anywhere go there. A link to a folder goes to its index page. A link whose
text is a file's name shows the page's title.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

_PAGES = {"SECURITY.md": "security", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
_LINK = re.compile(r"\]\((?:\.\./)*(?:docs/)?(" + "|".join(map(re.escape, _PAGES)) + r")(#[^)]*)?\)")
_NAMED = re.compile(r"\[[\w/.-]+\.md\](?=\((?!https?:)[^)]+\.md(?:#[^)]*)?\))")


def rewrite(app: Any, name: str, source: list[str]) -> None:
    """Give a page that stands for a file above its text, and point the links of any page at pages of the site."""
    above = next((file for file, page in _PAGES.items() if page == name), None)
    text = source[0]
    if above is not None:
        path = Path(app.srcdir).parent / above
        app.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8").replace("](docs/", "](")
    up = "../" * (len(PurePosixPath(name).parts) - 1)
    text = _LINK.sub(lambda found: f"]({up}{_PAGES[found[1]]}.md{found[2] or ''})", text)
    source[0] = _NAMED.sub("[]", text).replace("](results/)", "](results/index.md)")


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
