"""Write a study as a SLURM array job whose tasks share its seeds, with a last job for the report."""

from __future__ import annotations

import shlex

from surefoot.errors import ConfigError

__all__ = ["array_job"]

_SCRIPT = """\
#!/bin/bash
# {count} tasks share the seeds of one study; all of them must see {folder}.
#   sbatch --parsable study.sh
# and, for the report when all are done:
#   sbatch --dependency=afterany:JOB --wrap={report}
#SBATCH --job-name=surefoot-study
#SBATCH --array=0-{last}
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --output={log}
export OMP_NUM_THREADS=1
srun surefoot study {words} --workers ${{SLURM_CPUS_PER_TASK:-1}} --shard ${{SLURM_ARRAY_TASK_ID}}/{count}
"""


def array_job(arguments: list[str], shards: int, output_dir: str) -> str:
    """The script that runs `surefoot study ARGUMENTS` in `shards` tasks; a requeued task goes on where it was.

    Raises:
        ConfigError: fewer than one shard.
    """
    if shards < 1:
        raise ConfigError(f"slurm must be at least 1 task, got {shards}")
    return _SCRIPT.format(
        count=shards,
        last=shards - 1,
        words=shlex.join(_without_slurm(arguments)),
        folder=output_dir,
        report=shlex.quote(f"surefoot report {shlex.quote(output_dir)}"),
        log=shlex.quote(f"{output_dir}-%A_%a.log"),
    )


def _without_slurm(arguments: list[str]) -> list[str]:
    words: list[str] = []
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--slurm":
            skip = True
        elif not word.startswith("--slurm="):
            words.append(word)
    return words
