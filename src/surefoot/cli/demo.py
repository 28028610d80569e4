"""`surefoot demo`: run a small study on the offline world, from preferences to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.cli.parsing import parse
from surefoot.cli.progress import progress
from surefoot.cli.study import workers_of
from surefoot.errors import RunError
from surefoot.quiet import quieten
from surefoot.reports.wording import number

if TYPE_CHECKING:
    from surefoot.reports.summary import MethodSummary


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


METHODS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "variance_aware": {},
    "lcb": {"aggregate_parameter": 5.0},
    "variance_aware_lcb": {"aggregate_parameter": 5.0},
}
"""Their κ was chosen on other seeds than the demo's (docs/results/risk.md)."""
LINEAR: dict[str, Any] = {"kind": "linear", "layer": 0}
"""Settings of `surefoot reward` that suit the offline world: words, read from the embeddings."""
POLICY: dict[str, Any] = {"beta": 0.12, "learning_rate": 1e-3, "max_steps": 60}
"""β starts near where it ends, so that the penalty counts from the beginning (docs/trainers.md)."""


def run(arguments: list[str]) -> None:
    """Run the demo study and write its report; prints the table and the report's path."""
    from rich.console import Console

    quieten()
    (demo,) = parse((DemoConfig,), arguments, "demo")
    console = Console()
    console.print(
        "A small language model with a known true reward is aligned against one reward model, four ways at the same "
        "KL budget: plainly, with the KL weighted by the reward's variance, pessimistically (the reward less some "
        "standard deviations), and both.\n"
    )
    folder = Path(demo.output_dir)
    _study(demo, folder)
    from surefoot.reports.records import read_study
    from surefoot.reports.study import build_report, summary_table
    from surefoot.reports.summary import summarise

    console.print(summary_table(folder))
    page = build_report(folder)
    console.print("\n" + in_a_sentence(summarise(read_study(folder))))
    console.print(f"report: {page.resolve().as_uri()}")


def in_a_sentence(found: Iterable[MethodSummary]) -> str:
    """What the runs showed, in plain words, and what so few can't show."""
    by_method = {one.method: one for one in found}
    plain = by_method.pop("vanilla")
    others = [
        f"{number(one.gain.value)} {_HOW[method]}"
        for method, one in by_method.items()
        if not math.isnan(one.gain.value)
    ]
    lost = sum(round(one.risk.value * one.risk.n) for one in (plain, *by_method.values()))
    runs = sum(one.runs for one in (plain, *by_method.values()))
    below = f"{lost} of {runs} runs ended below the model they started from" if lost else "no run ended below it"
    few = "" if plain.runs >= _ENOUGH else f" {plain.runs} runs of each show the idea and prove nothing."
    return (
        f"Against this reward the policy gained {number(plain.gain.value)} in true reward over the model it started "
        f"from, {', '.join(others)}; {below}.{few}"
    )


_HOW = {
    "variance_aware": "with the weighted KL",
    "lcb": "with the pessimistic reward",
    "variance_aware_lcb": "with both",
}
_ENOUGH = 12


def _study(demo: DemoConfig, folder: Path) -> None:
    from surefoot.studies.run import run_study
    from surefoot.studies.runners.local import LocalRunner

    config = demo_study(demo.variant, demo.pairs, range(demo.first_seed, demo.first_seed + demo.seeds))
    with progress() as show:
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
    """The demo's study: one linear head on the offline world's own policy, at a budget of 6 nats.

    Args:
        changes: of other fields of `StudyConfig`.
    """
    from surefoot.studies.config import StudyConfig, method_settings

    grid: dict[str, Any] = {
        "settings": {variant: {"world": variant, "pairs": pairs}},
        "sources": {"linear": LINEAR},
        "methods": method_settings(METHODS),
        "kl_budgets": (6.0,),
        "seeds": tuple(seeds),
        "policy": POLICY,
    }
    return StudyConfig(**grid | changes)
