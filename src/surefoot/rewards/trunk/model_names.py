"""Resolve a model's name: a directory, a hub name, or a folder inside an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from surefoot.errors import ModelError
from surefoot.hub_names import check_name

__all__ = ["resolve_model"]


def resolve_model(name: str | Path, *, weights: bool = True) -> str:
    """Resolve a model's name to its directory or hub name; `package:NAME/FOLDER` is a folder of a Python package.

    NAME is a top-level package: looking for a dotted one would import its parents. A loaded `source.json` can't say
    `package:` at all (`surefoot.rewards.saved`).

    Args:
        weights: whether a local directory must hold a model; a tokenizer may stand alone.

    Raises:
        ModelError: the package isn't installed or its name is dotted, the folder leads out of it, there is neither
            such a path nor such a model on the hub, or a local directory holds no model or no weights.
    """
    text = str(name)
    if text.startswith("package:"):
        text = str(_inside_package(text))
    check_name(text, "model")
    folder = Path(text)
    if not weights:
        return text
    if folder.is_dir() or text.startswith((".", "/")):
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is not a model directory: it has no config.json")
        if not any(folder.glob("*.safetensors*")):
            raise ModelError(f"{folder} holds no *.safetensors weights; save the model there with save_pretrained")
    return text


def _inside_package(text: str) -> Path:
    package, _, inner = text.removeprefix("package:").partition("/")
    if not package.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise ModelError(f"model '{text}' must be package:NAME/FOLDER: a top-level package, a folder inside it")
    spec = None if package == "__main__" else find_spec(package)
    if spec is None or spec.origin is None or spec.submodule_search_locations is None:
        raise ModelError(f"model '{text}' needs the package {package}; install it (surefoot[examples] has it)")
    return Path(spec.origin).parent / inner
