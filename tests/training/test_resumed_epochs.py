"""A run that is resumed after its first epoch sees the prompts in the order of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.resumed_epochs import RESUMED, differences

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rloo", "grpo", "dpo"])
def test_a_checkpoint_of_any_epoch_leads_to_the_same_weights(policy_path: Path, tmp_path: Path, kind: str) -> None:
    found = differences(kind, str(policy_path), tmp_path)
    assert found.keys() == RESUMED.keys()
    assert max(found.values()) <= 1e-6, found


@pytest.mark.slow
def test_nor_do_two_processes_start_over(policy_path: Path, tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "tests.training.resumed_epochs", str(policy_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"found{rank}.json").read_text())
        assert found.keys() == RESUMED.keys()
        assert max(found.values()) <= 1e-6, found
