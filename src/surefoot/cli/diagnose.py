"""`surefoot diagnose`: measure a reward source's accuracy and calibration, and what its variance is worth."""

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
class DiagnoseConfig:
    """Settings of `surefoot diagnose`. Give `reward_source`, or `reward_models`."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out preferences (TRL's formats, RewardBench v1 or v2); if not given, the pairs that "
            "`surefoot reward` held out."
        },
    )
    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a reward source; give this or reward_models."}
    )
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Existing reward models, directories or hub names, taken as members."}
    )
    dataset_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of the dataset. If not given, and the dataset is the one that the source was trained from, "
            "only the pairs that `surefoot reward` held out are taken."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    plain_text: bool = field(
        default=False,
        metadata={
            "help": "RewardBench: join prompt and completion as text, for models without a chat template; the figures "
            "are then not the leaderboard's."
        },
    )
    bad_rows: str = field(
        default="error",
        metadata={"help": "error names unusable rows, drop leaves them out.", "choices": ("error", "drop")},
    )
    max_length: int = field(default=1024, metadata={"help": "models: in tokens."})
    far_items: int = field(
        default=500, metadata={"help": "Items whose right completions are changed into far texts; 0 for none."}
    )
    completions: str | None = field(
        default=None,
        metadata={
            "help": "Completions of the reference policy (prompt, completion, and perhaps truth, their true reward): "
            "whether the variance differs is then measured on them, and it is set against the true errors."
        },
    )
    anchor_file: str | None = field(
        default=None,
        metadata={
            "help": "Anchors made by `surefoot anchors`: variances are centred by the reference policy's completions "
            "where it has the prompt, as in training."
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where diagnose.json and diagnose.html go; the source's directory if not given."},
    )


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    return DiagnoseConfig, JudgeArguments


def run(arguments: list[str]) -> None:
    """Measure, print, and write diagnose.json, diagnose.html and, of a benchmark, its own result files."""
    from rich.console import Console

    from surefoot.data.comparisons import load_comparisons
    from surefoot.diagnosis import check_source, diagnose, keep_held_out, score_comparisons
    from surefoot.files import write_json
    from surefoot.locks import LOCK, hold
    from surefoot.reports.diagnosis import build_diagnosis, print_diagnosis
    from surefoot.rewards.anchors import AnchorStore
    from surefoot.rewards.saved import DIAGNOSIS
    from surefoot.rewards.score_cache import score_texts, source_hash

    quieten()
    (config,) = parse(option_types(), arguments, "diagnose")
    own, given_split = config.dataset_name is None, config.dataset_split is not None
    _complete(config)
    console = Console()
    comparisons = load_comparisons(
        config.dataset_name or "",
        split=config.dataset_split,
        config=config.dataset_config,
        bad_rows=config.bad_rows,
        conversational=not config.plain_text,
    )
    others = None if config.completions is None else _completions(config.completions)
    source = _source(config, comparisons)
    check_source(source)
    left_out = 0
    if not given_split:
        comparisons, left_out = keep_held_out(comparisons, source.training_pairs, required=own)
    anchors = None if config.anchor_file is None else AnchorStore.load(config.anchor_file, source)
    folder = Path(config.output_dir or config.reward_source or ".")
    key = source_hash(source, config.reward_source)
    cache = None if key is None else folder / "scores" / key
    with hold(folder / LOCK), progress() as show:
        scored = score_comparisons(
            source, comparisons, far_items=config.far_items, cache=cache, on_progress=partial(show, "preferences")
        )
        samples = None
        if others is not None:
            prompts, completions, truth = others
            rows = score_texts(source, prompts, completions, cache=cache, on_progress=partial(show, "completions"))
            samples = (rows, prompts, truth)
    diagnosis = diagnose(source, comparisons, scored, samples=samples, anchors=anchors, left_out=left_out)
    print_diagnosis(console, diagnosis)
    if diagnosis["data"]["warning"] is not None:
        Console(stderr=True).print(f"[bold red]WARNING:[/] {diagnosis['data']['warning']}", soft_wrap=True)
    if hasattr(source, "heard") and source.heard.replies:
        console.print(source.heard.line)
    settings = given_settings(arguments, "diagnose") | {
        "dataset_name": config.dataset_name,
        "dataset_split": config.dataset_split,
    }
    write_json(folder / DIAGNOSIS, {"settings": settings, **diagnosis})
    page = build_diagnosis(folder / "diagnose.html", diagnosis, settings)
    console.print(f"page: {page.resolve().as_uri()}")
    if comparisons.format != "pairs":
        _write_result_files(console, folder, comparisons, source, scored.rows, config)


def _complete(config: DiagnoseConfig) -> None:
    """Fill in what the source's own training recorded, and refuse what is contradictory."""
    from surefoot.data.training_pairs import PAIRS
    from surefoot.errors import ConfigError
    from surefoot.files import read_json
    from surefoot.records import RECORD

    if (config.reward_source is None) == (config.reward_models is None):
        raise ConfigError(
            "give either reward_source (a directory or hub name) or reward_models (a list of reward models)"
        )
    if config.bad_rows not in ("error", "drop"):
        raise ConfigError(f"bad_rows must be error or drop, got '{config.bad_rows}'")
    if config.far_items < 0:
        raise ConfigError(f"far_items must not be negative, got {config.far_items}")
    if config.output_dir is None and (config.reward_source is None or not Path(config.reward_source).is_dir()):
        raise ConfigError("with reward_models, or a source from the hub, say where the result goes: output_dir")
    if config.dataset_name is not None:
        return
    record = Path(config.reward_source or ".").parent / RECORD
    trained = read_json(record)["config"] if config.reward_source is not None and record.exists() else {}
    test_split = trained.get("dataset_test_split")
    known = test_split is not None or Path(config.reward_source or ".", PAIRS).exists()
    if "dataset_name" not in trained or not known:
        raise ConfigError(
            "dataset_name is missing, and which pairs the source held out isn't recorded beside it; give held-out "
            "preferences (a file, a directory or a hub name)"
        )
    config.dataset_name, config.dataset_config = trained["dataset_name"], trained.get("dataset_config")
    config.dataset_split = config.dataset_split or test_split or trained.get("dataset_train_split")
    config.bad_rows = trained.get("bad_rows", config.bad_rows)


def _completions(name: str) -> tuple[list[Any], list[Any], Any]:
    """(prompts, completions, true rewards or None) of a policy's samples."""
    import numpy as np

    from surefoot.data.preferences import load_completions

    table = load_completions(name)
    truth = np.array(table["truth"], dtype=np.float64) if "truth" in table.column_names else None
    return list(table["prompt"]), list(table["completion"]), truth


def _source(config: DiagnoseConfig, comparisons: Any) -> Any:
    from surefoot.rewards.trunk.loading import check_templates

    check_templates(
        [config.reward_source] if config.reward_source is not None else config.reward_models or [],
        comparisons.completions[0],
    )
    if config.reward_source is not None:
        from surefoot.rewards.registry import load_source

        return load_source(config.reward_source)
    from surefoot.rewards.kinds.independent.source import IndependentMembers

    return IndependentMembers.from_models(config.reward_models or [], max_length=config.max_length)


def _write_result_files(
    console: Any, folder: Path, comparisons: Any, source: Any, rows: Any, config: DiagnoseConfig
) -> None:
    """RewardBench's own files, of the mean and of each member, by the members' names."""
    from surefoot.diagnosis import mean_rewards
    from surefoot.diagnosis.rewardbench import write_results
    from surefoot.errors import DataError

    rewards = {f"surefoot/{source.name}": mean_rewards(source, rows)}
    members = source.members_of(rows)
    if members is not None:
        names = [_model_name(name) for name in config.reward_models or []]
        names = names or [f"surefoot/{source.name}-member-{k}" for k in range(source.num_members)]
        rewards |= dict(zip(names, members.numpy().T, strict=True))
    template = "none" if config.plain_text else "tokenizer"
    try:
        for name, values in rewards.items():
            write_results(folder / "rewardbench", comparisons, values, name, chat_template=template)
    except DataError as error:
        console.print(f"RewardBench's result files are left out: {error}")
        return
    console.print(f"RewardBench's own result files, of the mean and each member: {folder / 'rewardbench'}")


def _model_name(name: str) -> str:
    """organisation/model of a hub name; local/NAME of a directory."""
    return f"local/{Path(name).resolve().name}" if Path(name).exists() or name.count("/") != 1 else name
