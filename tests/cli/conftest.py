"""The tiny policy of `tests/models.py`, saved once."""

from pathlib import Path

import pytest

from tests.models import save_policy


@pytest.fixture(scope="session")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))
