"""`surefoot demo`: run a small study on the offline world, from preferences to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.cli.parsing import parse
from surefoot.cli.study import workers_of
from surefoot.errors import ConfigError, RunError
from surefoot.progress import progress
from surefoot.quiet import quieten

if TYPE_CHECKING:
    from rich.console import Console

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

BUDGET = 6.0
"""KL budget in nats per completion."""


def run(arguments: list[str]) -> None:
    """Run the demo study and write its report; prints the table, two sentences and the report's path."""
    from rich.console import Console

    console = Console()
    if not {"-h", "--help"} & set(arguments):
        console.print("surefoot demo: loading libraries …")  # before the imports, which take seconds
    quieten()
    (demo,) = parse((DemoConfig,), arguments, "demo")
    folder = Path(demo.output_dir)
    if finished(demo, folder):
        console.print(
            f"Everything is finished already in {folder}; nothing is run again. Raise --seeds for more runs, or "
            "choose another --output_dir to start anew.\n"
        )
    else:
        console.print(
            "A small language model with a known true reward is aligned against one reward model, four ways at the "
            "same KL budget: plainly, with the KL weighted by the reward's variance, pessimistically (the reward "
            "less some standard deviations), and both. It takes some minutes; Ctrl-C stops it, and the same command "
            "goes on.\n"
        )
        config = _config(demo)  # what is wrong with it is said before anything is trained
        _train_reference(folder, console)
        _study(demo, config, folder)
    from surefoot.reports.records import read_study
    from surefoot.reports.study import build_report, summary_table
    from surefoot.reports.summary import summarise

    console.print(summary_table(folder))
    page = build_report(folder)
    console.print("\n" + in_two_sentences(summarise(read_study(folder))))
    console.print(f"report: {page.resolve().as_uri()}", soft_wrap=True)


def finished(demo: DemoConfig, folder: Path) -> bool:
    """Whether the folder holds this demo with all its runs; found without loading torch."""
    from surefoot.reports.records import read_study
    from surefoot.run_records import study_path

    if not study_path(folder).exists():
        return False
    study = read_study(folder)
    wanted = {
        "settings": {demo.variant: {"world": demo.variant, "pairs": demo.pairs}},
        "sources": {"linear": LINEAR},
        "methods": {name: {"preset": name} | changes for name, changes in METHODS.items()},
        "kl_budgets": [BUDGET],
        "policy": POLICY,
    }
    seeds = tuple(range(demo.first_seed, demo.first_seed + demo.seeds))
    same = all(study.grid.config.get(name) == value for name, value in wanted.items())
    return same and tuple(study.grid.seeds) == seeds and len(study.cells) == study.planned


def in_two_sentences(found: Iterable[MethodSummary]) -> str:
    """What these runs showed, in plain words; then what so few runs can't show."""
    by_method = {one.method: one for one in found}
    plain = by_method.pop("vanilla")
    known = {method: one for method, one in by_method.items() if not math.isnan(one.gain.value)}
    more = [_HOW[method] for method, one in known.items() if one.gain.value > plain.gain.value]
    less = [_HOW[method] for method, one in known.items() if one.gain.value <= plain.gain.value]
    told = []
    if more:
        told.append(f"{_listed(more)} gained more true reward than plain training")
    if less:
        told.append(f"{_listed(less)} gained {'no more' if more else 'no more true reward than plain training'}")
    runs = [plain, *by_method.values()]
    lost = sum(round(one.risk.value * one.risk.n) for one in runs)
    below = f"{lost} of {sum(one.runs for one in runs)} runs" if lost else "no run"
    seen = f"In these runs {' and '.join(told)}; {below} ended below the model it started from."
    return f"{seen} {_limits(plain.runs)}"


def _limits(runs: int) -> str:
    """What this number of runs can't show."""
    if runs >= _ENOUGH:
        return f"The report says how sure {runs} runs of each make that."
    return (
        f"{runs} runs of each can't show how often a method ends below it, nor a difference of this size beyond "
        "chance: docs/results/risk.md has thirty."
    )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_HOW = {
    "variance_aware": "the weighted KL",
    "lcb": "the pessimistic reward",
    "variance_aware_lcb": "both together",
}
_ENOUGH = 12


def _train_reference(folder: Path, console: Console) -> None:
    """Train the world's reference policy if it isn't there, and show that something happens meanwhile."""
    from surefoot.data.world import build_world
    from surefoot.records import holds_other_files
    from surefoot.run_records import study_path
    from surefoot.studies.settings import WORLD

    record = study_path(folder)
    strange = not record.exists() and holds_other_files(folder, record.name, WORLD)
    if strange or (folder / WORLD / "policy" / "config.json").exists():
        return  # where there are files of something else, the study refuses the folder
    words = "training the reference policy (estimated: half a minute on an idle core)"
    if not console.is_terminal:
        print(words, flush=True)
    with console.status(words):
        build_world(folder / WORLD)


def _config(demo: DemoConfig) -> Any:
    from surefoot.data.world.preferences import VARIANTS

    if demo.variant not in VARIANTS:
        raise ConfigError(f"unknown world '{demo.variant}' (known: {', '.join(VARIANTS)})")
    return demo_study(demo.variant, demo.pairs, range(demo.first_seed, demo.first_seed + demo.seeds))


def _study(demo: DemoConfig, config: Any, folder: Path) -> None:
    from surefoot.studies.run import run_study
    from surefoot.studies.runners.local import LocalRunner

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
        "kl_budgets": (BUDGET,),
        "seeds": tuple(seeds),
        "policy": POLICY,
    }
    return StudyConfig(**grid | changes)
