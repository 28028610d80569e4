"""A prompt's completions may be scored by different processes; centring, weights and β must not notice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
def test_groups_split_between_two_processes(policy_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(policy_path), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]  # the bridge checks every batch's advantages on both
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["rows"] == 8  # one group of eight, four completions from each process
    assert first["group_means"] < 1e-9  # centred over the whole group: all members share its mean


@pytest.mark.slow
def test_fsdp2_on_two_processes_agrees_with_plain_ones(policy_path: Path, tmp_path: Path) -> None:
    """A policy sharded over two CPU processes, and one that each holds whole, end with the same weights."""
    found = {}
    for sharded in ("yes", "no"):
        output = tmp_path / sharded
        output.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*command, str(SCRIPT.with_name("fsdp.py")), str(policy_path), str(output), sharded],
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[sharded] = json.loads((output / "found.json").read_text())
    assert found["yes"].pop("sharded") is True
    assert found["no"].pop("sharded") is False
    assert found["yes"]["weight_spread"] > 0.1
    assert found["yes"].keys() == found["no"].keys()
    for name, value in found["no"].items():
        assert found["yes"][name] == pytest.approx(value, rel=1e-5), name
