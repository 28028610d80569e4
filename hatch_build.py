"""Build step: README.md as the package index can show it, where links relative to the repository lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)\n*")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def for_index(readme: str, source: str | None) -> str:
    """The README with its relative links made absolute; without an address of the repository they become plain text.

    Args:
        source: address of the repository, whose files are below `/blob/HEAD/`, raw ones below `/raw/HEAD/`.
    """
    if source is None:
        return _LINK.sub(r"\1", _PICTURE.sub("", readme))
    place = source.rstrip("/")
    pictured = _PICTURE.sub(rf"![\1]({place}/raw/HEAD/\2)\n\n", readme)
    return _LINK.sub(rf"[\1]({place}/blob/HEAD/\2)", pictured)


class ReadmeHook(MetadataHookInterface):
    """Gives the metadata's `readme`, which pyproject.toml declares dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, source)}
