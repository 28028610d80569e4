"""The packages that asking a judge needs, which the extra `judge` installs."""

from __future__ import annotations

from importlib.util import find_spec

from surefoot.errors import ConfigError

__all__ = ["check_packages"]


def check_packages() -> None:
    """Refuse to go on where one of them is missing.

    Raises:
        ConfigError: names it, and how to install it.
    """
    for package in ("openai", "aiohttp", "aiolimiter", "pydantic"):
        if find_spec(package) is None:
            raise ConfigError(f"a judge needs {package}, which is not installed: pip install 'surefoot[judge]'")
