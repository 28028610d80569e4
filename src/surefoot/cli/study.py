"""`surefoot study`: run a grid of whole pipelines and report their risk, or estimate its cost."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from surefoot.cli.parsing import parse
from surefoot.errors import ConfigError, RunError
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


@dataclass
class StudyArguments:
    """The grid, and where it runs. The axes are best written in a YAML file (examples/study_world.yaml)."""

    YAML_KINDS: ClassVar[dict[str, Any]] = {
        "methods": list[str] | dict,
        "seeds": int | list[int],
        "kl_budgets": list[float | None] | None,
    }
    """What a file may give where a word of the command line can't."""

    output_dir: str = field(metadata={"help": "Where records go; the same again goes on with what is missing."})
    title: str = field(default="Risk study", metadata={"help": "Of the report."})
    settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Name to world: uneven | even | shared_bias, or to model, prompts, …"}
    )
    sources: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Name to settings of `surefoot reward`, or to path: a saved source."}
    )
    methods: list[str] = field(
        default_factory=lambda: ["vanilla", "mean", "variance_aware"],
        metadata={"help": "Presets; or name to a preset with changed settings."},
    )
    kl_budgets: list[float] | None = field(
        default=None, metadata={"help": "Nats per sequence; β stays constant if none is given."}
    )
    seeds: int = field(default=10, metadata={"help": "Independent pipelines of every cell; in a file, also a list."})
    first_seed: int = field(default=0, metadata={"help": "Seeds are first_seed, first_seed + 1, …"})
    trainer: str = field(
        default="rloo", metadata={"help": "exact needs no training.", "choices": ("rloo", "grpo", "exact")}
    )
    policy: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Settings of the trainer: learning_rate, max_steps, use_peft, …"}
    )
    evaluation_completions: int = field(default=512, metadata={"help": "Judged completions of every final policy."})
    samples_kept: int = field(default=8, metadata={"help": "Of them that are kept to be read."})
    monitor_gold: bool = field(default=True, metadata={"help": "Judge every training batch too, for the trajectory."})
    runner: str = field(default="local", metadata={"help": "Where cells run.", "choices": ("local", "ray")})
    workers: int = field(
        default=0, metadata={"help": "local: processes at once, one thread each; 0 takes one per core, at most 8."}
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "ray: of a running cluster, such as auto or host:port; one of its own if none."},
    )
    num_cpus: float = field(default=1, metadata={"help": "ray: of each cell."})
    num_gpus: float = field(default=0, metadata={"help": "ray: of each cell."})
    retries: int = field(default=3, metadata={"help": "ray: of a task whose node died."})
    retry_failed: bool = field(default=False, metadata={"help": "Run cells again whose error is on record."})
    shard: str | None = field(default=None, metadata={"help": "i/n: run only this share of the seeds."})
    slurm: int | None = field(default=None, metadata={"help": "Print a SLURM array job of so many shards, and end."})
    plan: bool = field(
        default=False, metadata={"help": "Print cells, time and memory, from a measured cell, and end."}
    )
    model_size: str | None = field(
        default=None, metadata={"help": "plan: also the memory of 7B, 32B, 70B, or of a model's directory."}
    )


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.cli.plan import MemoryPlanArguments

    return StudyArguments, MemoryPlanArguments, JudgeArguments


def run(arguments: list[str]) -> None:
    """Run the study and write its report, or print what it would be."""
    quieten()
    study, memory = parse(option_types(), arguments, "study")
    config = configure(study)
    if study.slurm is not None:
        from surefoot.studies.runners.slurm import array_job

        print(array_job(arguments, study.slurm, study.output_dir))
    elif study.plan:
        from surefoot.cli.study_plan import print_plan

        print_plan(config, Path(study.output_dir), workers_of(study.workers), study.model_size, memory)
    else:
        _run(study, config)


def configure(study: StudyArguments) -> Any:
    """The grid that the settings name.

    Raises:
        ConfigError: an axis is empty or unknown.
    """
    from surefoot.studies.config import StudyConfig

    command = {each.name for each in fields(StudyArguments)}
    grid = {*(each.name for each in fields(StudyConfig)), "first_seed"} & command
    return StudyConfig.from_dict({name: getattr(study, name) for name in grid})


def workers_of(given: int) -> int:
    """Processes at once: as asked for, or one per core, at most 8."""
    return given or min(os.cpu_count() or 1, 8)


def _run(study: StudyArguments, config: Any) -> None:
    from rich.console import Console

    from surefoot.reports.study import build_report, summary_table
    from surefoot.studies.run import run_study

    folder, console = Path(study.output_dir), Console()
    with progress() as show:
        outcome = run_study(
            config,
            folder,
            title=study.title,
            runner=_runner(study),
            on_progress=show,
            retry_failed=study.retry_failed,
            shard=_shard(study.shard),
        )
    if study.shard is not None:
        console.print(f"shard {study.shard}: {outcome.finished} cells finished; `surefoot report {folder}` reads all")
    elif outcome.finished:
        console.print(summary_table(folder))
        console.print(f"report: {build_report(folder).resolve().as_uri()}")
    if outcome.failed:
        raise RunError(
            f"{outcome.failed} cells failed; their errors are in {folder / 'failed'}. Run the same command with "
            "--retry_failed once the cause is mended"
        )


def _runner(study: StudyArguments) -> Any:
    if study.runner == "ray":
        from surefoot.studies.runners.ray import RayRunner

        return RayRunner(study.ray_address, study.num_cpus, study.num_gpus, study.retries)
    if study.runner != "local":
        raise ConfigError(f"runner must be local or ray, got '{study.runner}'")
    from surefoot.studies.runners.local import LocalRunner

    return LocalRunner(workers_of(study.workers))


def _shard(shard: str | None) -> tuple[int, int] | None:
    """(i, n) of i/n."""
    if shard is None:
        return None
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ConfigError(f"shard must be i/n with 0 ≤ i < n, got '{shard}'")
    return int(number), int(count)
