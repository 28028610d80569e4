"""Load a Python function that a user names in settings of their own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["load_function"]


def load_function(name: str, what: str) -> Callable[..., Any]:
    """Import a function; its file or module is run.

    Args:
        name: file.py:name or module:name.
        what: the function is, in messages, as in "gold function".

    Raises:
        ConfigError: it can't be imported, or isn't there.
    """
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ConfigError(f"{what} '{name}' must be file.py:name or module:name")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ConfigError(f"can't load the {what} '{name}': {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"{place} has no function '{attribute}'")
    return function


def _module_of_file(path: Path) -> Any:
    if not path.exists():
        raise OSError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"surefoot_function_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
