"""Shapes in the maths are checked at run time in the tests; shared real data is found, or its absence is said."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

_THEORY = [f"surefoot.theory.{name}" for name in ("budgets", "exact", "gaussian_risk", "quadratic")]
_CHECKED = ["surefoot.maths", "surefoot.metrics", *_THEORY]
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")  # before surefoot is imported

pytest_plugins = ["tests.browser"]

collect_ignore = ["saved_before/make.py"]  # runs with an earlier version only
if find_spec("fastapi") is None:  # the extra `serve` is not installed
    collect_ignore += ["serving", "feedback/test_page.py", "feedback/test_label_in_browser.py"]

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


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from surefoot.data.world import build_world

    folder = tmp_path_factory.mktemp("world")
    build_world(folder)
    return folder


@pytest.fixture
def study_folder(tmp_path: Path, world_folder: Path) -> Path:
    """A study's folder whose world is there already."""
    from surefoot.files import write_json

    folder = tmp_path / "study"
    shutil.copytree(world_folder, folder / "world")
    write_json(folder / "study.json", {})
    return folder
