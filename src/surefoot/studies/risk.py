"""A risk study: every method at every seed, on local processes, resumable; leaves records that `reports` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from surefoot.data.world import build_world
from surefoot.files import write_json
from surefoot.maths.objectives import preset
from surefoot.quiet import quieten
from surefoot.records import claim_directory, commit, versions
from surefoot.studies.pipeline import PipelineConfig, cell_path, prepare_seed, reference_gold, run_cell
from surefoot.studies.runner import run_tasks, tick

__all__ = ["STAGES", "run_study"]

STAGES = ("world", "reward members", "policies")
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); `done` counts policy updates in the last stage, tasks in the others."""


def run_study(
    config: PipelineConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    title: str,
    workers: int,
    on_progress: Progress | None = None,
) -> None:
    """Run what is missing of the study in `folder`; finished seeds and cells are never run again.

    Raises:
        ConfigError: a method is not a preset.
        RunError: the folder holds a study with other settings, or a worker process died.
    """
    for method in methods:
        preset(method)
    settings = {"config": asdict(config), "methods": list(methods), "seeds": list(seeds)}
    claim_directory(folder, "study", settings)
    report = on_progress or (lambda stage, done, total: None)
    world_folder = folder / "world"
    report(STAGES[0], 0, 1)
    world = build_world(world_folder)
    reference_gold(world, config, folder)
    report(STAGES[0], 1, 1)
    sources = [(config, seed, world_folder, folder) for seed in seeds if not _prepared(folder, seed)]
    ready = len(seeds) - len(sources)
    report(STAGES[1], ready, len(seeds))
    run_tasks(
        _prepare, sources, workers=workers, on_progress=lambda _, done: report(STAGES[1], ready + done, len(seeds))
    )
    _run_cells(config, methods, seeds, world_folder, folder, workers, report)
    write_json(
        folder / "study.json",
        {
            "kind": "study",
            "title": title,
            "config": asdict(config),
            "methods": list(methods),
            "seeds": list(seeds),
            "kl_budget": config.kl_budget,
            "versions": versions(),
            "commit": commit(),
        },
    )


def _run_cells(
    config: PipelineConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    world_folder: Path,
    folder: Path,
    workers: int,
    report: Progress,
) -> None:
    cells = [(method, seed) for seed in seeds for method in methods]
    missing = [cell for cell in cells if not cell_path(folder, *cell).exists()]
    total = len(cells) * config.steps
    before = (len(cells) - len(missing)) * config.steps
    report(STAGES[2], before, total)
    run_tasks(
        _run,
        [(config, method, seed, world_folder, folder) for method, seed in missing],
        workers=workers,
        on_progress=lambda steps, _: report(STAGES[2], before + steps, total),
    )


def _prepared(folder: Path, seed: int) -> bool:
    return (folder / "disagreement" / f"{seed}.json").exists()


def _prepare(config: PipelineConfig, seed: int, world_folder: Path, folder: Path) -> None:
    quieten()
    prepare_seed(build_world(world_folder), config, seed, folder)


def _run(config: PipelineConfig, method: str, seed: int, world_folder: Path, folder: Path) -> None:
    quieten()
    run_cell(build_world(world_folder), config, method, seed, folder, tick)
