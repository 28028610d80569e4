"""The reward sources of a seed: trained once, as `surefoot reward` trains them, and shared by the seed's methods."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from surefoot.data.preferences import data_hash
from surefoot.diagnosis.disagreement import known_errors, measure_disagreement
from surefoot.errors import ConfigError, VarianceError
from surefoot.files import fingerprint, read_json, write_json
from surefoot.rewards.config import RewardSourceArguments, all_settings, command_settings, reward_arguments
from surefoot.rewards.kinds.borrowed_variance import BorrowedVariance
from surefoot.rewards.kinds.judge.access import JudgeAccess
from surefoot.rewards.registry import load_source, source_class
from surefoot.rewards.run import run_reward
from surefoot.rewards.source import RewardSource
from surefoot.setting_types import check_nested
from surefoot.studies.config import check_keys, single_of, without_methods
from surefoot.studies.settings import Setting, prompt_groups

__all__ = ["check_source", "cost_of", "load_sources", "prepare_source", "source_key"]

_OWN_KEYS = ("path", "single", "methods")
_OURS = ("output_dir", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "held_out")
"""Settings of `surefoot reward` that a study sets itself."""


def source_key(work: dict[str, Any], role: str) -> str:
    """Address of a trained source: its settings, its preferences and its seed."""
    return fingerprint([work["sources"][role], work["setting"], work["files"], work["seed"]])


def check_source(name: str, spec: dict[str, Any], policy: str) -> None:
    """Refuse what `surefoot reward` would refuse, before any cell runs.

    Raises:
        ConfigError: an unknown or foreign setting.
    """
    if "path" in spec:
        check_keys(spec, ("path", "methods"), f"source '{name}', which exists already")
        load_source(spec["path"], device="cpu")
        return
    _check_settings(without_methods(spec), policy, f"source '{name}'", f"sources.{name}", _OWN_KEYS)
    alone = without_methods(spec)
    single = single_of(alone)
    if single is not alone:
        _check_settings(single, policy, f"the single model of source '{name}'", f"sources.{name}.single")


def _check_settings(spec: dict[str, Any], policy: str, what: str, where: str, more: tuple[str, ...] = ()) -> None:
    kind = spec.get("kind", RewardSourceArguments.kind)
    declared = (RewardSourceArguments, command_settings(str(kind)))
    known = {item.name for one in declared for item in fields(one)} - {*_OURS, "seed", "kind_settings"}
    others = [name for name in spec if name not in {*known, *more}]
    if others:  # settings of other kinds are refused below, with their names
        check_keys(others, known | all_settings(), what)
    check_nested(spec, declared, where)
    _arguments(spec, policy, 0, Path("unused")).check()


def prepare_source(
    setting: Setting, spec: dict[str, Any], key: str, seed: int, folder: Path, reference: dict[str, Any]
) -> dict[str, Any]:
    """Draw the seed's preferences, train the source, and measure how far its members disagree; once.

    Args:
        key: its address; everything is kept in `sources/<key>`, `prepared.json` last.
        reference: completions of the reference policy with their truth, with which its errors are compared.

    Returns:
        What `prepared.json` holds: `path`, `data_hash`, `cpu_seconds`, `disagreement`.
    """
    target = folder / "sources" / key
    done = target / "prepared.json"
    if done.exists():
        held: dict[str, Any] = read_json(done)
        return held
    start = time.process_time()
    train, held_out = setting.preferences(seed)
    path = Path(str(spec["path"])) if "path" in spec else _train(setting, spec, seed, target, train, held_out)
    seconds = time.process_time() - start
    source = load_source(path, judge=JudgeAccess.of_settings(spec))
    record = {
        "path": str(path),
        "data_hash": data_hash(train),
        "cpu_seconds": seconds,
        "disagreement": _disagreement(source, held_out, reference),
    }
    write_json(done, record)
    return record


def _train(setting: Setting, spec: dict[str, Any], seed: int, target: Path, train: Dataset, held_out: Dataset) -> Path:
    base = setting.policy
    if source_class(spec.get("kind", RewardSourceArguments.kind)).made_from == "reward model":
        base = str(_one_model(setting, spec, seed, target / "single", train, held_out))
    args = _arguments(spec, base, seed, target / "reward")
    run_reward(args, {**spec, "seed": seed}, pairs=(train, held_out))
    return target / "reward" / "source"


def _one_model(
    setting: Setting, spec: dict[str, Any], seed: int, target: Path, train: Dataset, held_out: Dataset
) -> Path:
    """The plain reward model that a posterior is fitted to."""
    single = single_of(spec)
    run_reward(_arguments(single, setting.policy, seed, target), {**single, "seed": seed}, pairs=(train, held_out))
    source = target / "source"
    members: list[str] = read_json(source / "source.json").get("members", [])
    if not members:
        raise ConfigError(f"single must be of kind independent for kind: {spec['kind']}, got {single.get('kind')}")
    return source / members[0]


def _arguments(spec: dict[str, Any], base: str, seed: int, output_dir: Path) -> RewardSourceArguments:
    given = {name: value for name, value in spec.items() if name not in _OWN_KEYS}
    common = {"model_name_or_path": base} | given
    return reward_arguments(output_dir=str(output_dir), dataset_name="drawn by the study", seed=seed, **common)


def _disagreement(source: RewardSource, held_out: Dataset, reference: dict[str, Any]) -> dict[str, Any] | None:
    """None for a source that has nothing to compare."""
    try:
        prepared = measure_disagreement(source, held_out).to_dict()
    except VarianceError:
        return None
    rows = [row for row, value in enumerate(reference["gold"]) if value is not None]
    prompts, completions, gold = (
        [reference[name][row] for row in rows] for name in ("prompts", "completions", "gold")
    )
    scores, groups = source.score(prompts, completions), torch.tensor(prompt_groups(prompts))
    errors = known_errors(source, scores, torch.tensor(gold), groups).to_dict()
    reliability = None if source.calibration is None else source.calibration.notes.get("reliability")
    return prepared | {"known_errors": errors | {"reliability": reliability}}


def load_sources(work: dict[str, Any], folder: Path) -> RewardSource:
    """The prepared source of a cell: one, or one model with the variance of others."""
    loaded = {
        role: load_source(_prepared(work, role, folder)["path"], judge=JudgeAccess.of_settings(spec))
        for role, spec in work["sources"].items()
    }
    return BorrowedVariance(**loaded) if "variance" in loaded else loaded["reward"]


def cost_of(work: dict[str, Any], folder: Path) -> tuple[float, str]:
    """(CPU seconds that the cell's sources took, hash of the preferences)."""
    prepared = [_prepared(work, role, folder) for role in work["sources"]]
    return sum(one["cpu_seconds"] for one in prepared), str(prepared[0]["data_hash"])


def _prepared(work: dict[str, Any], role: str, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(folder / "sources" / source_key(work, role) / "prepared.json")
    return record
