"""Load the true reward of a study: a function, or a reward source that no policy was trained against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.python_functions import load_function
from surefoot.rewards.registry import load_source
from surefoot.types import Text

__all__ = ["Gold", "gold_spec", "load_gold", "refuse_members", "weight_hashes"]

Gold = Callable[[Sequence[Text], Sequence[Text]], list[float]]
"""Function of (prompts, completions) that gives the true reward of each; higher is better."""


def load_gold(spec: dict[str, Any]) -> Gold:
    """Load the true reward that a study's setting names.

    Args:
        spec: `function: file.py:name` or `module:name`, a function of (prompts, completions) to numbers; or
            `source: directory`, any saved reward source (a held-out model or ensemble, or an LLM judge), whose mean
            reward counts.

    Raises:
        ConfigError: neither or both are given, or there is no such function.
    """
    if set(spec) == {"function"}:
        return _checked(load_function(str(spec["function"]), "gold function"), str(spec["function"]))
    if set(spec) == {"source"}:
        return _of_source(str(spec["source"]))
    raise ConfigError(
        "gold must be `function: file.py:name` (or module:name) or `source: directory`, got "
        f"{', '.join(map(str, spec)) or 'nothing'}"
    )


def gold_spec(name: str) -> dict[str, Any]:
    """What `load_gold` takes, of one word: a function as file.py:name or module:name, else a source's directory."""
    return {"function": name} if ":" in name and not Path(name).exists() else {"source": name}


def _checked(function: Gold, name: str) -> Gold:
    def judge(prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        rewards = function(prompts, completions)
        try:
            values = [float(value) for value in rewards]
        except (TypeError, ValueError) as error:
            raise DataError(f"gold function '{name}' must give a list of numbers, got {rewards!r:.60}") from error
        if len(values) != len(prompts):
            raise DataError(f"gold function '{name}' gave {len(values)} rewards for {len(prompts)} completions")
        return values

    return judge


def _of_source(directory: str) -> Gold:
    source = load_source(directory)

    def judge(prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        # Nothing is taken away by prompt: rewards are compared between policies.
        values: list[float] = source.reward_of(source.score(prompts, completions)).tolist()
        return values

    return judge


def refuse_members(gold: dict[str, Any], sources: dict[str, dict[str, Any]]) -> None:
    """Refuse a judge that is, or shares weights with, a reward that the policies are trained against.

    Args:
        sources: the study's, by name; those with a `path` exist already, the others will be trained by the study and
            can't be the judge.

    Raises:
        ConfigError: the source, and the file that both hold.
    """
    if "source" not in gold:
        return
    judges = weight_hashes(Path(str(gold["source"])))
    for name, spec in sources.items():
        if "path" not in spec:
            continue
        held = weight_hashes(Path(str(spec["path"])))
        if same_place(gold["source"], spec["path"]) or set(judges) & set(held):
            shared = next((judges[key] for key in judges if key in held), Path(str(spec["path"])))
            raise ConfigError(
                f"gold is a member of source '{name}' ({shared}): a policy that overfits it would look good; name a "
                "reward model that no policy is trained against"
            )


def same_place(first: str | Path, second: str | Path) -> bool:
    """Whether two paths lead to the same place."""
    return Path(first).resolve() == Path(second).resolve()


def weight_hashes(directory: Path) -> dict[str, Path]:
    """Weight files below a directory by their SHA-256; empty for a name on the hub."""
    files = {}
    for path in sorted(directory.rglob("*.safetensors")):
        with path.open("rb") as file:
            files[hashlib.file_digest(file, "sha256").hexdigest()] = path
    return files
