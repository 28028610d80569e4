"""`surefoot world`: write the offline world (model, preferences, prompts) as ordinary files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from surefoot.cli.parsing import parse
from surefoot.quiet import quieten


@dataclass
class WorldConfig:
    """Settings of `surefoot world`."""

    output_dir: str = field(default="world", metadata={"help": "Where the files go."})
    variant: str = field(
        default="uneven",
        metadata={"help": "Which errors annotators make.", "choices": ("uneven", "even", "shared_bias")},
    )
    pairs: int = field(default=3000, metadata={"help": "Preference pairs to train reward members on."})
    test_pairs: int = field(default=500, metadata={"help": "Held-out pairs, drawn apart."})
    seed: int = field(default=0, metadata={"help": "Of the preference draw."})


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    return (WorldConfig,)


def run(arguments: list[str]) -> None:
    """Write model directory, preferences and prompts; the finished parts are kept if the command runs again."""
    from rich.console import Console

    from surefoot.data.world.export import export_world

    quieten()
    (config,) = parse(option_types(), arguments, "world")
    console = Console()
    with console.status("building the world (about half a minute the first time)"):
        paths = export_world(Path(config.output_dir), **{k: v for k, v in asdict(config).items() if k != "output_dir"})
    for name, path in paths.items():
        console.print(f"{name}: {path}", soft_wrap=True)
