"""Run the missing cells of a study on any runner, and write the records that `reports` reads."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from surefoot.errors import RunError, SurefootError
from surefoot.files import fingerprint, read_json
from surefoot.locks import LOCK, hold
from surefoot.quiet import quieten
from surefoot.records import commit, holds_other_files, versions
from surefoot.rewards.gold import refuse_members
from surefoot.run_records import (
    DisagreementRecord,
    FailureRecord,
    StudyRecord,
    cell_path,
    disagreement_path,
    failure_path,
    study_path,
    write_disagreement,
    write_failure,
    write_study_record,
)
from surefoot.studies.cell import check_policy, run_cell, work_path
from surefoot.studies.config import Cell, StudyConfig
from surefoot.studies.evaluation import reference_of
from surefoot.studies.exact_cell import candidates_of, check_exact
from surefoot.studies.reward_sources import check_source, prepare_source, source_key
from surefoot.studies.runners.local import InlineRunner, Runner, tick
from surefoot.studies.settings import WORLD, Setting, build_setting
from surefoot.typed_json import decode

__all__ = ["STAGES", "Outcome", "check_study", "run_study"]

STAGES = ("reference", "reward sources", "policies")
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); `done` counts policy updates in the last stage, tasks in the others."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Numbers of finished and of failed cells after a run."""

    finished: int
    failed: int


def run_study(
    config: StudyConfig,
    folder: str | Path,
    *,
    title: str = "Risk study",
    runner: Runner | None = None,
    on_progress: Progress | None = None,
    retry_failed: bool = False,
    shard: tuple[int, int] | None = None,
) -> Outcome:
    """Run what is missing of the study in `folder`; `surefoot.reports.study.build_report(folder)` makes its page.

    A finished cell never runs again, and a failed one only on request. After a changed setting the cells that it
    doesn't touch are still there: every record's address is made of all that its result depends on.

    Args:
        config: `StudyConfig.from_dict` of what a config file of `surefoot study` holds.
        title: of the report.
        runner: where tasks run; this process if None.
        on_progress: called with (stage, done, of how many).
        retry_failed: run cells again whose error is on record.
        shard: (i, n) runs every n-th seed only, from the i-th on, beside the processes that run the others in this
            folder. Whole seeds, so that no source is trained twice.

    Raises:
        ConfigError, DataError, ModelError: whatever can be found wrong before the first cell.
        RunError: the folder holds something else, or another process works on it, or a worker process died.
    """
    folder = Path(folder)
    with hold(folder / LOCK, shared=shard is not None), _held_shard(folder, shard):
        return _run_held(config, folder, title, runner or InlineRunner(), on_progress, retry_failed, shard)


def _held_shard(folder: Path, shard: tuple[int, int] | None) -> AbstractContextManager[None]:
    """Lock of one shard; all shards also share the folder's lock."""
    return nullcontext() if shard is None else hold(folder / f"{LOCK}.{shard[0]}-of-{shard[1]}")


def _run_held(
    config: StudyConfig,
    folder: Path,
    title: str,
    runner: Runner,
    on_progress: Progress | None,
    retry_failed: bool,
    shard: tuple[int, int] | None,
) -> Outcome:
    report = on_progress or (lambda stage, done, total: None)
    everything = config.cells()
    check_study(config, folder)
    _announce(config, everything, folder, title)
    i, n = shard or (0, 1)
    cells = list({cell.key: cell for cell in everything if cell.seed % n == i}.values())
    _remove_work(cells, folder)
    _references(cells, folder, report)
    wanted = [cell for cell in cells if not cell_path(folder, cell.key).exists()]
    wanted = [cell for cell in wanted if retry_failed or not failure_path(folder, cell.key).exists()]
    broken = _prepare_sources(wanted, folder, runner, report)
    _run_cells(cells, wanted, broken, folder, runner, report)
    _disagreement(everything, folder)
    finished = sum(cell_path(folder, cell.key).exists() for cell in cells)
    return Outcome(finished, sum(failure_path(folder, cell.key).exists() for cell in cells))


def check_study(config: StudyConfig, folder: Path) -> None:
    """Check the study's settings without training anything; this loads its models and data.

    Raises:
        ConfigError, DataError, ModelError, RunError: see the message.
    """
    path = study_path(folder)
    if not path.exists() and holds_other_files(folder, path.name, WORLD):
        raise RunError(f"{folder} is not empty and holds no study; choose another output directory")
    check_policy(config.trainer, config.policy)
    if config.trainer == "exact":
        check_exact(config.policy, config.kl_budgets)
    for spec in config.settings.values():
        refuse_members(spec.get("gold", {}), config.sources)
        setting = _setting(json.dumps(spec), str(folder))
        for name, source in config.sources.items():
            check_source(name, source, setting.policy)


def _announce(config: StudyConfig, cells: Iterable[Cell], folder: Path, title: str) -> None:
    """Write `study.json` before the first cell, so that a report can tell which cells are missing."""
    record = StudyRecord(
        title=title,
        config={"title": title, "output_dir": str(folder)} | config.to_dict(),
        settings=tuple(config.settings),
        sources=tuple(config.sources),
        methods=tuple(config.methods),
        kl_budgets=config.kl_budgets,
        seeds=config.seeds,
        cells=tuple(cell.place() for cell in cells),
        versions=versions(),
        commit=commit(),
    )
    write_study_record(folder, record)


def _remove_work(cells: list[Cell], folder: Path) -> None:
    """Remove checkpoints of finished cells that were killed between writing the record and removing them."""
    for cell in cells:
        if cell_path(folder, cell.key).exists():
            shutil.rmtree(work_path(folder, cell.key), ignore_errors=True)


def _references(cells: list[Cell], folder: Path, report: Progress) -> None:
    """Judge the reference policy of every setting here, before several worker processes would each do it."""
    needed = {fingerprint(_reference_settings(cell)): cell for cell in cells}
    for done, cell in enumerate(needed.values()):
        report(STAGES[0], done, len(needed))
        _reference(cell, folder)
    report(STAGES[0], len(needed), len(needed))


def _reference_settings(cell: Cell) -> list[Any]:
    work = cell.work
    policy = work["policy"]
    return [
        work["setting"],
        work["evaluation_completions"],
        policy.get("max_completion_length"),
        policy.get("candidates"),
    ]


def _reference(cell: Cell, folder: Path) -> dict[str, Any]:
    work = cell.work
    tokens = work["policy"].get("max_completion_length") or 256
    if work["trainer"] == "exact":
        candidates_of(_setting_of(cell, folder), work, folder)
    return reference_of(_setting_of(cell, folder), folder, work["evaluation_completions"], tokens)


def _prepare_sources(wanted: list[Cell], folder: Path, runner: Runner, report: Progress) -> dict[str, str]:
    """Train the sources that the cells need; gives the error of each that failed, by its address."""
    needed = {source_key(cell.work, role): (cell, role) for cell in wanted for role in cell.work["sources"]}
    tasks = [(cell, role, folder) for cell, role in needed.values()]
    report(STAGES[1], 0, len(tasks))
    errors = runner(_prepare, tasks, lambda ticks, done: report(STAGES[1], done, len(tasks)))
    report(STAGES[1], len(tasks), len(tasks))
    return {key: error for key, error in zip(needed, errors, strict=True) if error is not None}


def _run_cells(
    cells: list[Cell],
    wanted: list[Cell],
    broken: dict[str, str],
    folder: Path,
    runner: Runner,
    report: Progress,
) -> None:
    ready = []
    for cell in wanted:
        errors = [broken[key] for role in cell.work["sources"] if (key := source_key(cell.work, role)) in broken]
        if errors:
            _record_failure(cell, folder, f"its reward source could not be trained: {errors[0]}")
        else:
            ready.append(cell)
    steps = {cell.key: int(cell.work["policy"].get("max_steps", 1)) for cell in cells}
    total, left = sum(steps.values()), sum(steps[cell.key] for cell in ready)
    report(STAGES[2], total - left, total)
    runner(
        _run,
        [(cell, folder) for cell in ready],
        lambda ticks, done: report(
            STAGES[2], total - left + max(ticks, sum(steps[cell.key] for cell in ready[:done])), total
        ),
    )
    report(STAGES[2], total, total)


def _disagreement(cells: list[Cell], folder: Path) -> None:
    """Write how far the members of every prepared source disagree, for the report."""
    for cell in cells:
        role = "variance" if "variance" in cell.work["sources"] else "reward"
        key = source_key(cell.work, role)
        prepared, target = folder / "sources" / key / "prepared.json", disagreement_path(folder, key)
        if target.exists() or not prepared.exists():
            continue
        measured = read_json(prepared)["disagreement"]
        if measured is not None:
            place = {"setting": cell.setting, "source": cell.source, "seed": cell.seed}
            write_disagreement(target, decode(DisagreementRecord, place | measured))


# --- in the workers --------------------------------------------------------------------------------------------------


def _prepare(cell: Cell, role: str, folder: Path) -> str | None:
    """Train a cell's source; returns the error, or None."""
    _settle_down()
    work = cell.work
    try:
        setting, key = _setting_of(cell, folder), source_key(work, role)
        prepare_source(setting, work["sources"][role], key, work["seed"], folder, _reference(cell, folder))
    except Exception as error:
        return _said(error)
    return None


def _run(cell: Cell, folder: Path) -> None:
    _settle_down()
    try:
        run_cell(_setting_of(cell, folder), cell, folder, tick)
        failure_path(folder, cell.key).unlink(missing_ok=True)
    except Exception as error:
        _record_failure(cell, folder, _said(error))


def _settle_down() -> None:
    quieten()
    torch.set_num_threads(1)


def _said(error: Exception) -> str:
    """The text of an error; with its traceback unless it is one of surefoot's own."""
    if isinstance(error, SurefootError):
        return str(error)
    return f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"


def _record_failure(cell: Cell, folder: Path, error: str) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_failure(failure_path(folder, cell.key), FailureRecord(cell.place(), error, when))


def _setting_of(cell: Cell, folder: Path) -> Setting:
    return _setting(json.dumps(cell.work["setting"]), str(folder))


@lru_cache(maxsize=8)
def _setting(spec: str, folder: str) -> Setting:
    return build_setting(json.loads(spec), Path(folder))
