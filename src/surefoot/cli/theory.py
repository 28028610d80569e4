"""`surefoot theory`: check the risk theorem numerically, and where its assumptions fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from surefoot.cli.parsing import parse


@dataclass
class TheoryConfig:
    """Settings of `surefoot theory`."""

    output_dir: str = field(default="theory", metadata={"help": "Where theory.json and the figures go."})
    seed: int = field(default=0, metadata={"help": "Of all random problems."})


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    return (TheoryConfig,)


def run(arguments: list[str]) -> None:
    """Print the tables; write theory.json and one SVG for each table."""
    from rich.console import Console

    from surefoot.files import write_json, write_text
    from surefoot.reports.theory import theory_tables, theory_words
    from surefoot.reports.theory_figures import theory_figures
    from surefoot.theory.tables.run import run_theory

    (config,) = parse(option_types(), arguments, "theory")
    console, folder = Console(), Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # before minutes of work
    with console.status("") as status:
        record = run_theory(config.seed, lambda name: status.update(f"{name} …"))
    for table in theory_tables(record):
        console.print(table)
    for line in theory_words(record):
        console.print(f"- {line}", highlight=False)
    write_json(folder / "theory.json", record)
    for name, figure in theory_figures(record).items():
        write_text(folder / f"{name}.svg", figure.svg(standalone=True))
    console.print(f"records and figures: {folder.resolve()}", soft_wrap=True)
