"""Rubrics: what a judge is asked to rate, in several wordings; files of the library, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError
from surefoot.yaml_files import read_yaml

__all__ = ["Rubric", "library", "load_rubric"]

_FOLDER = Path(__file__).parent / "rubrics"


@dataclass(frozen=True)
class Rubric:
    """What is rated.

    Args:
        name: shown in logs.
        lowest, highest: whole numbers, the ends of the scale; higher is better.
        wordings: the same question in different words. Each is put as it stands before the rules of quoting and of
            replying, so it says what to judge and not how to answer.
    """

    name: str
    lowest: int
    highest: int
    wordings: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.highest > self.lowest:
            raise ConfigError(f"rubric '{self.name}': the scale must rise, got {self.lowest} to {self.highest}")
        if not self.wordings or not all(wording.strip() for wording in self.wordings):
            raise ConfigError(f"rubric '{self.name}' needs at least one wording, and none may be empty")
        if len(set(self.wordings)) < len(self.wordings):
            raise ConfigError(f"rubric '{self.name}' has a wording twice; copies can't disagree")


def library() -> list[str]:
    """Names of the rubrics that come with surefoot."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_rubric(name: str | Path) -> Rubric:
    """Read a rubric by its name in the library, or from a YAML file.

    The file holds `wordings`, a list of texts, and perhaps `scale: [lowest, highest]` (1 to 9 if not) and `name`.

    Raises:
        ConfigError: there is no such rubric, or the file isn't one; it says what is wrong.
    """
    path = _FOLDER / f"{name}.yaml" if str(name) in library() else Path(name)
    if not path.is_file():
        raise ConfigError(
            f"there is no rubric '{name}': give the path of a YAML file, or one of {', '.join(library())}"
        )
    values = read_yaml(path, "rubric")
    return _checked(values, path)


def _checked(values: Any, path: Path) -> Rubric:
    known = {"name", "scale", "wordings"}
    if not isinstance(values, dict) or not set(values) <= known:
        raise ConfigError(f"rubric {path} must hold wordings, and perhaps scale and name, and nothing else")
    wordings, scale = values.get("wordings"), values.get("scale", [1, 9])
    if not isinstance(wordings, list) or not all(isinstance(wording, str) for wording in wordings):
        raise ConfigError(f"rubric {path}: wordings must be a list of texts")
    if not isinstance(scale, list) or len(scale) != 2 or not all(type(end) is int for end in scale):
        raise ConfigError(f"rubric {path}: scale must be two whole numbers, such as [1, 9], got {scale!r}")
    return Rubric(str(values.get("name", path.stem)), scale[0], scale[1], tuple(text.strip() for text in wordings))
