"""Shapes in the maths are checked at run time in the tests; shared real data is found, or its absence is said."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

_HOOK = install_import_hook("surefoot.maths", "beartype.beartype")

# The same examples on every run and machine, and no limit on the time of one: machines differ.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and models beside the checkout (SUREFOOT_SHARED names another)."""
    folder = Path(os.environ.get("SUREFOOT_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data and models in {folder}")
    return folder
