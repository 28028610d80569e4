"""`surefoot demo`: the real pipeline at small size, from preferences to a report."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from surefoot.cli.parsing import parse
from surefoot.quiet import quieten


@dataclass
class DemoConfig:
    """Settings of `surefoot demo`; a finished part is never run again."""

    output_dir: str = field(default="demo", metadata={"help": "Where everything goes; the same again to resume."})
    seeds: int = field(default=3, metadata={"help": "Independent pipelines per method."})
    first_seed: int = field(default=0, metadata={"help": "Seeds are first_seed, first_seed + 1, …"})
    variant: str = field(default="uneven", metadata={"help": "Offline world: uneven, even or shared_bias."})
    pairs: int = field(default=3000, metadata={"help": "Preference pairs that each seed draws for its reward models."})
    workers: int = field(
        default=0, metadata={"help": "Processes at once, one thread each; 0 takes one per core, at most 8."}
    )


METHODS = ("vanilla", "mean", "variance_aware")


def run(arguments: list[str]) -> None:
    """Run the demo study and write its report; prints the table and the report's path."""
    from rich.console import Console

    quieten()
    (demo,) = parse((DemoConfig,), arguments, "demo")
    console = Console()
    console.print(
        "A small language model with a known true reward is aligned three ways at the same KL budget:\n"
        "with one reward model, with the mean of five, and with their variance weighing the KL.\n"
    )
    folder = Path(demo.output_dir)
    _study(demo, folder)
    from surefoot.reports.study import build_report, summary_table

    console.print(summary_table(folder))
    console.print(f"report: {build_report(folder).resolve().as_uri()}")


def _study(demo: DemoConfig, folder: Path) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from surefoot.studies.pipeline import PipelineConfig
    from surefoot.studies.risk import STAGES, run_study

    columns = (TextColumn("{task.description:<15}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bars:
        tasks = {stage: bars.add_task(stage, total=None, start=False) for stage in STAGES}

        def show(stage: str, done: int, total: int) -> None:
            bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=done, total=total)

        run_study(
            PipelineConfig(variant=demo.variant, pairs=demo.pairs),
            METHODS,
            range(demo.first_seed, demo.first_seed + demo.seeds),
            folder,
            title="surefoot demo",
            workers=demo.workers or min(os.cpu_count() or 1, 8),
            on_progress=show,
        )
