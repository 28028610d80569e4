"""Read a saved source's files without trusting them (SECURITY.md).

The folder holds ordinary files and no links out of it. Every path in its `source.json` stays below the folder, and
every field has the right type; a base model is named by its hub name or lies in the folder.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import ModelError
from surefoot.files import read_json, write_json
from surefoot.rewards.trunk.dtypes import DTYPES
from surefoot.types import Calibration

__all__ = [
    "CALIBRATION",
    "DIAGNOSIS",
    "SOURCE",
    "base_of",
    "check_finite",
    "check_folder",
    "inner_folders",
    "read_source",
    "read_tensors",
    "save_calibration",
]

SOURCE = "source.json"
CALIBRATION = "calibration.json"
DIAGNOSIS = "diagnose.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_POOLINGS = ("last", "mean", "cls")


def check_folder(folder: Path) -> None:
    """Refuse links in a source's folder, and whatever is neither a file nor a folder.

    The hub's cache keeps a snapshot's files as links to its `blobs`; those are allowed.

    Raises:
        ModelError: the first such entry.
    """
    root = folder.resolve()
    snapshot = next((path for path in (root, *root.parents) if path.parent.name == "snapshots"), None)
    blobs = None if snapshot is None else snapshot.parent.parent / "blobs"
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and (blobs is None or path.resolve().parent != blobs):
                raise ModelError(f"{path} is a link, which a reward source can't hold; put the file itself there")
            if not (path.is_file() or path.is_dir()):
                raise ModelError(f"{path} is neither a file nor a folder; a reward source holds nothing else")


def save_calibration(directory: str | Path, calibration: Calibration | None) -> None:
    """Write `calibration.json` beside a source, if there is one."""
    if calibration is not None:
        write_json(Path(directory) / CALIBRATION, calibration.to_dict())


def read_source(folder: Path) -> dict[str, Any]:
    """Read `source.json` and check the type of every field that is there.

    Raises:
        ModelError: it is no object, or a field isn't what it should be. RunError: it isn't JSON.
    """
    path = folder / SOURCE
    held = check_finite(path)
    if not isinstance(held, dict):
        raise ModelError(f"{path} must hold an object of settings, got a {type(held).__name__}")
    for name, (fits, wanted) in _FIELDS.items():
        if name in held and not fits(held[name]):
            raise ModelError(f"{path}: {name} must be {wanted}, got {held[name]!r:.80}")
    return held


def inner_folders(folder: Path, names: list[str], field: str) -> list[Path]:
    """Resolve the folders that a field of `source.json` names, each below `folder`.

    Raises:
        ModelError: a path that is absolute, leads out or to the folder itself, or is there twice.
    """
    where = folder / SOURCE
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or "\\" in name or Path(name).is_absolute() or "\0" in name:
            raise ModelError(f"{where}: {field} must name folders below {folder}, got '{name}'")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ModelError(f"{where}: {field} names '{twice}' twice; copies can't disagree")
    return [folder / name for name in names]


def base_of(folder: Path, base: str) -> str:
    """Resolve the base model of a saved source: a folder inside `folder`, or a hub name.

    Raises:
        ModelError: it is a path, `package:`, or the name of a directory here.
    """
    if (folder / base).is_dir():
        return str(inner_folders(folder, [base], "base")[0])
    if not _HUB_NAME.fullmatch(base) or Path(base).exists():
        raise ModelError(
            f"{folder / SOURCE}: base must be a hub name or a folder in {folder}, got '{base}'; if you trust that "
            "model, give it yourself: LoraMembers.from_adapters(adapters, base)"
        )
    return base


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, all of which must be finite.

    Raises:
        ModelError: it is missing or broken, or a number in it is NaN or infinite.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"can't read {path}: {error}") from None
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{path}: {name} holds NaN or infinite numbers")
    return tensors


def check_finite(path: Path) -> Any:
    """Read JSON whose numbers must all be finite.

    Raises:
        ModelError: one isn't. RunError: it isn't JSON.
    """
    held = read_json(path)
    if not _finite(held):
        raise ModelError(f"{path} holds NaN or infinite numbers, or some beyond 64 bits")
    return held


def _finite(held: Any) -> bool:
    left = [held]
    while left:  # no recursion: JSON may be nested deeply
        value = left.pop()
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
        elif not math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) >= 2**63:
            return False
    return True


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


_Check = tuple[Callable[[Any], bool], str]
_TEXT: _Check = (lambda value: isinstance(value, str), "text")
_COUNT: _Check = (lambda value: _whole(value) and 1 <= value <= 10**9, "a positive whole number")
_LAYER: _Check = (lambda value: _whole(value) and abs(value) < 10**6, "a whole number")
_OBJECT: _Check = (lambda value: isinstance(value, dict), "an object")
_LIST: _Check = (_names, "a list of folder names")
_FIELDS: dict[str, _Check] = {
    "kind": _TEXT,
    "name": _TEXT,
    "base": _TEXT,
    "members": _LIST,
    "sources": _LIST,
    "max_length": _COUNT,
    "features": _COUNT,
    "hidden": _COUNT,
    "terms": _COUNT,
    "layer": _LAYER,
    "distance_layer": (lambda value: value is None or _LAYER[0](value), "a whole number or null"),
    "pooling": (lambda value: value in _POOLINGS, f"one of {', '.join(_POOLINGS)}"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "scale_members": (lambda value: isinstance(value, bool), "true or false"),
    "shape": _OBJECT,
    "config": _OBJECT,
    "figures": _OBJECT,
    "rubric": _OBJECT,
    "trunk": _OBJECT,
}
"""Fields of `source.json` that mean the same in every kind."""
