"""The array job is a script that bash reads, and runs the study's own command."""

import subprocess

import pytest

from surefoot.errors import ConfigError
from surefoot.studies.runners.slurm import array_job


def test_the_script_runs_every_shard() -> None:
    script = array_job(["--config", "my study.yaml", "--slurm", "4", "--seeds=8"], 4, "runs/risk")
    assert "#SBATCH --array=0-3" in script
    assert "surefoot study --config 'my study.yaml' --seeds=8" in script
    assert "--shard ${SLURM_ARRAY_TASK_ID}/4" in script
    assert "--slurm" not in script.replace("#SBATCH", "")
    stub = 'srun() { echo "$@"; }\n'
    done = subprocess.run(
        ["bash", "-eu", "-c", stub + script],
        env={"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-4:] == ["--workers", "3", "--shard", "2/4"]


def test_no_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        array_job([], 0, "x")
