"""Shapes in the maths are checked at run time in the tests; shared real data is found, or its absence is said."""

import fcntl
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
    """The offline world, to be read only.

    Its policy takes half a minute to train, so the workers of one run share it: the first that needs it makes it.
    """
    from surefoot.data.world import build_world

    base = tmp_path_factory.getbasetemp()
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = place / "shared_world"
    with (place / "shared_world.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one that waited finds a finished policy, which appears by a rename
        build_world(folder)
    return folder


@pytest.fixture
def study_folder(tmp_path: Path, world_folder: Path) -> Path:
    """A study's folder whose world is there already."""
    from surefoot.files import write_json

    folder = tmp_path / "study"
    shutil.copytree(world_folder / "policy", folder / "world" / "policy")
    write_json(folder / "study.json", {})
    return folder


@pytest.fixture
def trained_already(world_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The world's policy is a copy of that of `world_folder` where this process would train it.

    Returns:
        The folders that were asked for.
    """
    from surefoot.data.world import world

    made = []

    def copy(folder: Path, seed: int) -> None:
        assert seed == 0, "world_folder has the policy of seed 0"
        made.append(folder)
        shutil.copytree(world_folder / "policy", folder)

    monkeypatch.setattr(world, "train_reference", copy)
    return made
