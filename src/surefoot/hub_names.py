"""Refuse a name that is neither a path nor on the hub, at once: the libraries that load it retry many times."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from surefoot.errors import DataError, ModelError, did_you_mean

__all__ = ["check_name"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = (".parquet", ".json", ".jsonl", ".csv", ".yaml", ".safetensors")
_Asked = Literal["yes", "no", "unreachable", "unknown"]


def check_name(name: str, what: Literal["model", "dataset", "reward source"]) -> None:
    """Check that a model, dataset or source is a path, or is in the hub's cache, or is on the hub (one request).

    Raises:
        DataError, ModelError: it is none of them, and the nearest name in its folder, if one is alike.
    """
    if Path(name).exists():
        return
    if not _HUB_NAME.fullmatch(name) or name.startswith(".") or Path(name).suffix in _FILES:
        raise _missing(name, what, "and it can't be a name on the hub")
    repository = "dataset" if what == "dataset" else "model"
    if _is_cached(name, repository):
        return
    answer = _on_the_hub(name, repository)
    if answer == "no":
        raise _missing(name, what, "and the hub has none of that name that you may read")
    if answer == "unreachable":
        raise _missing(name, what, "and the hub can't be reached (HF_HUB_OFFLINE is set, or there is no network)")


def _missing(name: str, what: str, rest: str) -> DataError | ModelError:
    path = Path(name)
    beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    kind = DataError if what == "dataset" else ModelError
    return kind(f"can't load {what} '{name}': there is no such path here, {rest}{did_you_mean(str(path), beside)}")


def _is_cached(name: str, repository: str) -> bool:
    from huggingface_hub import constants

    folders = [Path(constants.HF_HUB_CACHE) / f"{repository}s--{name.replace('/', '--')}"]
    if repository == "dataset":
        from datasets import config

        folders.append(Path(config.HF_DATASETS_CACHE) / name.replace("/", "___"))
    return any(folder.is_dir() for folder in folders)


def _on_the_hub(name: str, repository: str) -> _Asked:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "unreachable"
    try:
        return "yes" if HfApi().repo_exists(name, repo_type=repository) else "no"
    except HfHubHTTPError:  # the hub answers, but not this question: the library that loads it may know more
        return "unknown"
    except Exception:  # of the HTTP library, whichever huggingface_hub uses
        return "unreachable"
