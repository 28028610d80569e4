"""`surefoot demo`: the real pipeline at small size, from preferences to a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.cli.parsing import parse
from surefoot.cli.study import progress_bars, workers_of
from surefoot.errors import RunError
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


METHODS = ("vanilla", "variance_aware_one", "mean", "variance_aware")
HEADS: dict[str, Any] = {
    "kind": "heads",
    "members": 5,
    "layer": 0,  # words, read from the embeddings
    "bootstrap": "exponential",
    "prior_scale": 1.0,
    "learning_rate": 1e-2,
    "weight_decay": 1.0,
    "epochs": 60,
}
"""Settings of `surefoot reward` that suit the offline world."""
POLICY: dict[str, Any] = {"beta": 0.12, "learning_rate": 1e-3, "max_steps": 60}
"""β starts near where it ends, so that the penalty counts from the beginning (docs/trainers.md)."""


def run(arguments: list[str]) -> None:
    """Run the demo study and write its report; prints the table and the report's path."""
    from rich.console import Console

    quieten()
    (demo,) = parse((DemoConfig,), arguments, "demo")
    console = Console()
    console.print(
        "A small language model with a known true reward is aligned four ways at the same KL budget: with one "
        "reward model and with the mean of five, each with and without the five's variance weighing the KL.\n"
    )
    folder = Path(demo.output_dir)
    _study(demo, folder)
    from surefoot.reports.study import build_report, summary_table

    console.print(summary_table(folder))
    console.print(f"report: {build_report(folder).resolve().as_uri()}")


def _study(demo: DemoConfig, folder: Path) -> None:
    from surefoot.studies.risk import run_study
    from surefoot.studies.runner import LocalRunner

    config = demo_study(demo.variant, demo.pairs, range(demo.first_seed, demo.first_seed + demo.seeds))
    with progress_bars() as show:
        outcome = run_study(
            config,
            folder,
            title="surefoot demo",
            runner=LocalRunner(workers_of(demo.workers)),
            on_progress=show,
            retry_failed=True,
        )
    if outcome.failed:
        raise RunError(f"{outcome.failed} cells failed; their errors are in {folder / 'failed'}")


def demo_study(variant: str, pairs: int, seeds: Iterable[int], **changes: Any) -> Any:
    """The demo's study: five heads on the offline world's own policy, at a budget of 6 nats.

    Args:
        changes: of other fields of `StudyConfig`.
    """
    from surefoot.studies.config import StudyConfig, method_settings

    grid: dict[str, Any] = {
        "settings": {variant: {"world": variant, "pairs": pairs}},
        "sources": {"heads": HEADS},
        "methods": method_settings(METHODS),
        "kl_budgets": (6.0,),
        "seeds": tuple(seeds),
        "policy": POLICY,
    }
    return StudyConfig(**grid | changes)
