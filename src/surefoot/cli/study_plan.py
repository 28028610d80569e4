"""`surefoot study --plan`: print the cells, time and memory that a study would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.progress import progress

__all__ = ["print_plan"]


def print_plan(config: Any, folder: Path, workers: int, model_size: str | None, memory: Any) -> None:
    """Print cells, time and memory of the study, and of a model's size the memory per GPU with its arithmetic.

    Args:
        workers: processes that would share the cells.
        memory: `MemoryPlanArguments`.
    """
    from rich.console import Console

    from surefoot.cli.plan import memory_plan, memory_table
    from surefoot.studies.planning import plan_study

    console = Console()
    if model_size is not None:  # first: it needs no pilot
        console.print(memory_table(memory_plan(model_size, memory)))
    with progress() as show:
        plan = plan_study(config, folder, show)
    for line in plan_lines(plan, workers):
        console.print(line, highlight=False)


def plan_lines(plan: Any, workers: int) -> list[str]:
    """The plan in words and numbers, arithmetic shown."""
    missing = plan.cells - plan.finished
    return [
        f"cells: {plan.cells}, of which {plan.finished} are finished; reward sources to train: {plan.sources}",
        f"one cell takes {duration(plan.cell_seconds)}, one source {duration(plan.source_seconds)} ({plan.measured})",
        f"left: {missing} × {duration(plan.cell_seconds)} + {plan.sources} × {duration(plan.source_seconds)} = "
        f"{duration(plan.seconds)} of one process, {duration(plan.seconds / workers)} on {workers}",
        f"memory: {plan.memory_mb:.0f} MiB a process, {workers * plan.memory_mb / 1024:.1f} GiB for {workers}",
    ]


def duration(seconds: float) -> str:
    """1.5 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
