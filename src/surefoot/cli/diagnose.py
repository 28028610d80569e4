"""`surefoot diagnose`: how far can this reward be trusted, on held-out preferences."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten


@dataclass
class DiagnoseConfig:
    """Settings of `surefoot diagnose`. Give `source`, or `models`."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Held-out preferences; the held-out split of the source's own training if not given."},
    )
    source: str | None = field(default=None, metadata={"help": "Directory of a reward source."})
    models: list[str] | None = field(
        default=None, metadata={"help": "Existing reward models, directories or hub names, taken as members."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    bad_rows: str = field(default="error", metadata={"help": "error names unusable rows, drop leaves them out."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where diagnose.json and diagnose.html go; the source's directory if not given."},
    )


def run(arguments: list[str]) -> None:
    """Measure, print, and write diagnose.json and diagnose.html."""
    from rich.console import Console

    from surefoot.files import write_json
    from surefoot.reports.disagreement import build_diagnosis, disagreement_table
    from surefoot.rewards.source import DIAGNOSIS
    from surefoot.studies.disagreement import measure_disagreement

    quieten()
    (config,) = parse((DiagnoseConfig,), arguments, "diagnose")
    _complete(config)
    console = Console()
    pairs = _pairs(config)
    with console.status(f"scoring {len(pairs)} pairs"):
        found = measure_disagreement(_source(config), pairs).to_dict()
    console.print(disagreement_table(found))
    for line in found["verdict"]:
        console.print(f"- {line}")
    folder = Path(config.output_dir or config.source)
    settings = given_settings(arguments) | {"dataset": config.dataset, "split": config.split}
    write_json(folder / DIAGNOSIS, {"settings": settings, "data_hash": _hash(pairs), **found})
    page = build_diagnosis(folder / "diagnose.html", found, settings)
    console.print(f"page: {page.resolve().as_uri()}")


def _complete(config: DiagnoseConfig) -> None:
    """Fill in what the source's own training recorded, and refuse what is contradictory."""
    from surefoot.errors import ConfigError
    from surefoot.files import read_json
    from surefoot.records import RECORD

    if (config.source is None) == (config.models is None):
        raise ConfigError("give either source (a directory) or models (a list of reward models)")
    if config.source is None and config.output_dir is None:
        raise ConfigError("with models, say where the result goes: output_dir")
    if config.dataset is not None:
        return
    record = Path(config.source or ".").parent / RECORD
    trained = read_json(record)["config"] if config.source is not None and record.exists() else {}
    if trained.get("dataset_test_split") is None:
        raise ConfigError("dataset is missing; give held-out preferences (a file, a directory or a hub name)")
    config.dataset, config.split = trained["dataset_name"], trained["dataset_test_split"]
    config.bad_rows = trained.get("bad_rows", config.bad_rows)


def _pairs(config: DiagnoseConfig) -> Any:
    from surefoot.data.preferences import load_preferences

    return load_preferences(config.dataset or "", split=config.split, bad_rows=config.bad_rows)  # type: ignore[arg-type]


def _source(config: DiagnoseConfig) -> Any:
    if config.source is not None:
        from surefoot.rewards.source import load_source

        return load_source(config.source)
    from surefoot.rewards.independent import IndependentMembers

    return IndependentMembers.from_models(config.models or [])


def _hash(pairs: Any) -> str:
    from surefoot.data.preferences import data_hash

    return data_hash(pairs)
