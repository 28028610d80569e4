"""`surefoot score`: reward and variance for every row of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments


@dataclass
class ScoreConfig:
    """Settings of `surefoot score`. Give `reward_source`, or `reward_models`."""

    dataset_name: str = field(metadata={"help": "prompt and completion, or chosen and rejected; file or hub."})
    output: str = field(metadata={"help": "A .parquet or .jsonl file; the same again resumes."})
    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a reward source; give this or reward_models."}
    )
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Existing reward models, directories or hub names, taken as members."}
    )
    anchor_file: str | None = field(
        default=None,
        metadata={
            "help": "Anchors made by `surefoot anchors`: variances are centred by the reference policy's completions; "
            "prompts that it lacks by the dataset's own (the column anchor says which)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of frozen models: auto, float32 or bfloat16; as the source was fitted if not given."
        },
    )
    chunk_rows: int = field(default=2048, metadata={"help": "Rows in memory at a time."})


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    return ScoreConfig, JudgeArguments


def run(arguments: list[str]) -> None:
    """Score every row, with a progress bar, and write one file."""
    from rich.console import Console

    from surefoot.data.loading import open_dataset
    from surefoot.rewards.anchors import AnchorStore
    from surefoot.rewards.score_dataset import score_dataset

    quieten()
    (config,) = parse(option_types(), arguments, "score")
    table = open_dataset(config.dataset_name, split=config.dataset_split, config=config.dataset_config)
    source = _source(config, table)
    anchors = None if config.anchor_file is None else AnchorStore.load(config.anchor_file, source)
    with progress() as show:
        path = score_dataset(
            source,
            table,
            config.output,
            anchors=anchors,
            chunk_rows=config.chunk_rows,
            settings=given_settings(arguments, "score"),
            name=config.dataset_name,
            on_progress=partial(show, "rows"),
        )
    if hasattr(source, "heard"):
        Console().print(source.heard.line, soft_wrap=True)
    Console().print(f"scored {len(table)} rows: {Path(path).resolve()}", soft_wrap=True)


def _source(config: Any, table: Any) -> Any:
    from surefoot.errors import ConfigError
    from surefoot.rewards.kinds.independent.source import IndependentMembers
    from surefoot.rewards.registry import load_source
    from surefoot.rewards.trunk.loading import check_templates

    if (config.reward_source is None) == (config.reward_models is None):
        raise ConfigError("give exactly one of reward_source (a directory of `surefoot reward`) and reward_models")
    row = table[0] if len(table) else {}
    text = next((row[name] for name in ("completion", "chosen") if name in row), "")
    check_templates([config.reward_source] if config.reward_source else config.reward_models, text)
    if config.reward_source:
        return load_source(config.reward_source, dtype=config.dtype)
    return IndependentMembers.from_models(config.reward_models, dtype=config.dtype or "auto")
