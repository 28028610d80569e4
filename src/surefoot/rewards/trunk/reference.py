"""Trunks by reference: a saved source holds the digest of its trunk's weights, which lie elsewhere, and no copy.

Where they lie is never read from the source. It is what `load_source(trunk=...)` says, else the environment variable
SUREFOOT_TRUNK, else this user's own table, which remembers the models that such sources were fitted on. Whatever is
found must have the digest.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from surefoot.errors import ModelError, RunError
from surefoot.files import read_json, write_json
from surefoot.rewards.trunk.model_names import resolve_model

__all__ = ["REFERENCE", "VARIABLE", "place_of_weights", "trunk_given", "write_reference"]

VARIABLE = "SUREFOOT_TRUNK"
"""Environment variable that names a model to take the weights from."""
REFERENCE = "weights.json"
"""Stands beside the trunk's config and tokenizer in place of its weights."""
_WEIGHTS = "*.safetensors"
_GIVEN: ContextVar[str | None] = ContextVar("trunk", default=None)


@contextmanager
def trunk_given(model: str | Path | None) -> Iterator[None]:
    """Within this context, trunks that are kept by reference are taken from this model; None changes nothing."""
    token = _GIVEN.set(_GIVEN.get() if model is None else str(model))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def write_reference(folder: Path, model: str | Path) -> None:
    """Replace the weights in a saved trunk by a reference to the model that they come from, and remember where it is.

    The caller has made sure that they are the same.

    Args:
        folder: with the config, tokenizer and weights of the trunk.
        model: directory, hub name or `package:NAME/FOLDER`.
    """
    place = resolve_model(model)
    digest = _digest(place)
    _remember(digest, str(Path(place).resolve()) if Path(place).is_dir() else place)
    write_json(folder / REFERENCE, {"sha256": digest, "name": Path(place).name if Path(place).is_dir() else place})
    for path in (*folder.glob(_WEIGHTS), *folder.glob(f"{_WEIGHTS}.index.json")):
        path.unlink()


def place_of_weights(name: str | Path) -> str | Path:
    """The model to load instead of a folder that refers to weights elsewhere; any other name as it is.

    Raises:
        ModelError: nobody says where they are, or what is said has other weights.
    """
    file = Path(name) / REFERENCE
    if not file.exists() or any(Path(name).glob(_WEIGHTS)):
        return name
    held = read_json(file)
    digest = held.get("sha256") if isinstance(held, dict) else None
    if not isinstance(digest, str):
        raise ModelError(f"{file} must hold the sha256 of the trunk's weights")
    given = _GIVEN.get() or os.environ.get(VARIABLE)
    place = given or _table().get(digest)
    asked = f"load_source(..., trunk=MODEL), or the environment variable {VARIABLE}"
    model = f"'{held.get('name')!s:.80}'"
    if place is None:
        raise ModelError(
            f"{name} refers to the weights of a model that was called {model} where it was fitted, and it isn't known "
            f"where they are on this machine: say it by {asked}"
        )
    try:
        found = _digest(resolve_model(place))
    except ModelError as error:
        raise ModelError(
            f"{name} refers to weights that should be at '{place}': {error}; or say it by {asked}"
        ) from error
    if found != digest:
        raise ModelError(
            f"{name} was fitted on the weights of {model}, and those of '{place}' are others (sha256 {found[:12]} in "
            f"place of {digest[:12]}); give the same model by {asked}"
        )
    return place


def _digest(place: str) -> str:
    """SHA-256 over the names and contents of a model's safetensors files."""
    folder = Path(place)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(place, allow_patterns=[_WEIGHTS]))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            raise ModelError(f"there is no directory {place}, and the hub doesn't give it: {error}") from error
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise ModelError(f"{folder} holds no {_WEIGHTS} weights")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return whole.hexdigest()


def _table_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot" / "trunks.json"


def _table() -> dict[str, str]:
    """Places by digest; empty where there is no table, or none that can be read."""
    try:
        held = read_json(_table_path())
    except RunError:
        return {}
    return {key: value for key, value in held.items() if isinstance(value, str)} if isinstance(held, dict) else {}


def _remember(digest: str, place: str) -> None:
    try:
        write_json(_table_path(), _table() | {digest: place})
    except OSError as error:  # the source is whole all the same
        warnings.warn(
            f"{_table_path()} can't be written ({error.strerror}), so it isn't remembered where the trunk is: "
            f"say it by {VARIABLE}={place} when the source is loaded",
            stacklevel=2,
        )
