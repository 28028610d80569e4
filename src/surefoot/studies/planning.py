"""Estimate the cells, time and memory of a study from its finished cells, or from a pilot."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from surefoot.errors import RunError
from surefoot.files import read_json
from surefoot.run_records import CellMetrics, cell_path, failure_path, known, read_cell, read_failure
from surefoot.studies.config import Cell, StudyConfig
from surefoot.studies.reward_sources import source_key
from surefoot.studies.run import run_study
from surefoot.studies.runners.local import LocalRunner

__all__ = ["Plan", "plan_study"]

_PILOT_STEPS = (2, 8)


@dataclass(frozen=True, slots=True)
class Plan:
    """Estimated size of a study.

    Args:
        cells: of the grid, each address once. finished: that have a record already.
        sources: that the missing cells need and that aren't trained.
        cell_seconds, source_seconds: time of one cell and of one source on one process.
        memory_mb: largest resident memory of a worker.
        measured: what the figures come from.
    """

    cells: int
    finished: int
    sources: int
    cell_seconds: float
    source_seconds: float
    memory_mb: float
    measured: str

    @property
    def seconds(self) -> float:
        """Estimated time of all missing cells and sources on one process."""
        return (self.cells - self.finished) * self.cell_seconds + self.sources * self.source_seconds


def plan_study(config: StudyConfig, folder: Path, on_progress: Callable[[str, int, int], None] | None = None) -> Plan:
    """Count what is missing, and take time and memory from the folder's finished cells, or from a pilot.

    The pilot runs one seed of the grid's dearest kind of cell (the last method) for a few updates, in a folder of its
    own that is removed, and extends its time per update to all of them.

    Raises:
        RunError: the pilot failed, with its error.
    """
    cells = list({cell.key: cell for cell in config.cells()}.values())
    missing = [cell for cell in cells if not cell_path(folder, cell.key).exists()]
    needed = {source_key(cell.work, role) for cell in missing for role in cell.work["sources"]}
    untrained = [key for key in needed if not (folder / "sources" / key / "prepared.json").exists()]
    finished = [read_cell(cell_path(folder, cell.key)).metrics for cell in cells if cell not in missing]
    figures = _of_records(finished, folder, cells) if finished else _of_pilot(config, on_progress)
    return Plan(len(cells), len(cells) - len(missing), len(untrained), *figures)


def _of_records(finished: list[CellMetrics], folder: Path, cells: list[Cell]) -> tuple[float, float, float, str]:
    keys = {source_key(cell.work, role) for cell in cells for role in cell.work["sources"]}
    paths = [path for key in keys if (path := folder / "sources" / key / "prepared.json").exists()]
    return (
        statistics.fmean(known(metrics.seconds) for metrics in finished),
        statistics.fmean(read_json(path)["cpu_seconds"] for path in paths),
        max(known(metrics.peak_memory_mb) for metrics in finished),
        f"{len(finished)} finished cells",
    )


def _of_pilot(
    config: StudyConfig, on_progress: Callable[[str, int, int], None] | None
) -> tuple[float, float, float, str]:
    name = list(config.methods)[-1]
    small = replace(
        config, methods={name: config.methods[name]}, seeds=config.seeds[:1], kl_budgets=config.kl_budgets[:1]
    )
    seconds, memory = [], []
    with tempfile.TemporaryDirectory(prefix="surefoot-plan-") as place:
        for steps in _PILOT_STEPS:
            longer = {} if config.trainer == "exact" else {"max_steps": steps}  # an exact cell has no steps
            pilot = replace(small, policy=config.policy | longer)
            run_study(pilot, Path(place), title="pilot", runner=LocalRunner(1), on_progress=on_progress)
            metrics = [_measured(Path(place), cell) for cell in pilot.cells()]
            seconds.append(statistics.fmean(known(each.seconds) for each in metrics))
            memory.append(max(known(each.peak_memory_mb) for each in metrics))
        prepared = [read_json(path) for path in Path(place).glob("sources/*/prepared.json")]
    sources, memory_mb = statistics.fmean(each["cpu_seconds"] for each in prepared), max(memory)
    if config.trainer == "exact":
        return seconds[0], sources, memory_mb, f"a pilot cell of {name}"
    few, more = _PILOT_STEPS
    step = (seconds[1] - seconds[0]) / (more - few)
    wanted = statistics.fmean(cell.work["policy"]["max_steps"] for cell in config.cells())
    return (
        seconds[1] + (wanted - more) * step,
        sources,
        memory_mb,
        f"a pilot of {few} and {more} updates of {name}",
    )


def _measured(folder: Path, cell: Cell) -> CellMetrics:
    path = cell_path(folder, cell.key)
    if not path.exists():
        failed = failure_path(folder, cell.key)
        error = read_failure(failed).error if failed.exists() else "no record was written"
        raise RunError(f"the pilot cell of the plan failed: {error}")
    return read_cell(path).metrics
