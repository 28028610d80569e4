"""The optional packages of the judge, imported when they are needed and asked for by name when they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from surefoot.errors import ConfigError

__all__ = ["need"]


def need(package: str) -> ModuleType:
    """Import a package of the extra `judge`.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise ConfigError(f"a judge needs {package}, which is not installed: pip install 'surefoot[judge]'") from None
