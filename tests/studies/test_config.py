"""A study's settings: read back as they were written, and cells at the addresses that finished studies have."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from surefoot.cli.parsing import parse
from surefoot.cli.study import StudyArguments, configure
from surefoot.errors import ConfigError
from surefoot.files import fingerprint
from surefoot.maths.objectives import PRESETS
from surefoot.rewards.config import RewardSourceArguments
from surefoot.studies.config import StudyConfig, method_settings

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
GRID: dict[str, Any] = {
    "settings": {"uneven": {"world": "uneven", "pairs": 60}},
    "sources": {"linear": {"kind": "linear", "layer": 0}},
    "methods": method_settings(["vanilla", "mean"]),
    "kl_budgets": (6.0,),
    "seeds": (0,),
}


def read_back(config: StudyConfig) -> list[StudyConfig]:
    """As `from_dict` reads it from plain values, from JSON and from YAML."""
    values = config.to_dict()
    texts = (json.loads(json.dumps(values)), yaml.safe_load(yaml.safe_dump(values, sort_keys=False)))
    return [StudyConfig.from_dict(each) for each in (values, *texts)]


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": (0, 2, 5)},
        {"seeds": (7,)},
        {"seeds": (3, 4, 5)},
        {"seeds": (5, 4, 3)},
        {"kl_budgets": (None,)},
        {"kl_budgets": (None, 6.0)},
        {"kl_budgets": (6.0, None, 12.0)},
        {"methods": method_settings({"vanilla": None, "ours": {"preset": "lcb", "aggregate_parameter": 2.0}})},
        {"sources": {"linear": {"kind": "linear", "methods": ["mean"]}, "saved": {"path": "runs/source"}}},
        {"trainer": "exact", "policy": {"candidates": 24}, "evaluation_completions": 7, "samples_kept": 0,
         "monitor_gold": False},
    ],
)  # fmt: skip
def test_a_study_reads_what_it_writes(changes: dict[str, Any]) -> None:
    config = StudyConfig(**GRID | changes)
    for again in read_back(config):
        assert again == config
        assert [cell.key for cell in again.cells()] == [cell.key for cell in config.cells()]


@given(
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True),
    budgets=st.lists(st.none() | st.floats(0.01, 100.0), min_size=1, max_size=4),
    methods=st.lists(st.sampled_from(sorted(PRESETS)), min_size=1, max_size=4, unique=True),
    renamed=st.booleans(),
)
def test_any_axes_are_read_back(
    seeds: list[int], budgets: list[float | None], methods: list[str], renamed: bool
) -> None:
    named = {f"my {name}": {"preset": name} for name in methods} if renamed else methods
    axes = {"seeds": tuple(seeds), "kl_budgets": tuple(budgets), "methods": method_settings(named)}
    config = StudyConfig(**GRID | axes)
    assert read_back(config) == [config] * 3


def test_a_number_of_seeds_is_counted_from_the_first() -> None:
    read = StudyConfig.from_dict(GRID | {"seeds": 3, "first_seed": 40, "title": "t", "output_dir": "o"})
    assert read.seeds == (40, 41, 42)
    assert StudyConfig.from_dict(GRID | {"seeds": [0, 2, 5], "first_seed": 9}).seeds == (0, 2, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl_budget": [6]}, "unknown key 'kl_budget' in a study; did you mean 'kl_budgets'"),
        ({"kl_budgets": ["six"]}, "kl_budgets must be a list of numbers, got"),
        ({"settings": ["uneven"]}, "settings must be `name: {key: value}` lines"),
        ({"sources": None}, "at least one of sources"),
    ],
)
def test_what_is_no_study_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StudyConfig.from_dict(GRID | changes)


def test_a_file_may_have_none_among_its_budgets(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    grid = {name: GRID[name] for name in ("settings", "sources")} | {"output_dir": "out", "kl_budgets": [None, 6]}
    path.write_text(yaml.safe_dump(grid))
    (study,) = parse((StudyArguments,), ["--config", str(path)], "study")
    assert configure(study).kl_budgets == (None, 6.0)


@pytest.mark.parametrize(
    ("name", "count", "first", "all_of_them"),
    [
        ("uneven", 600, "384dd4604917878f", "f5c73db4d0805fe1"),
        ("uneven_400", 240, "2b2bacd3a22df9f0", "429c766af1b050b1"),
        ("even_and_shared", 96, "8c3e9dab895eda58", "d0312f47405c28d9"),
        ("slow", 48, "88589946eeb85816", "e874fd9506b5d069"),
        ("laplace", 60, "41d9543c780dd61f", "03c32a560fcf7b89"),
        ("corrections", 180, "c59894110f5b91e9", "04dcb405d0104780"),
    ],
)
def test_finished_studies_keep_their_addresses(name: str, count: int, first: str, all_of_them: str) -> None:
    """Another address would run thousands of finished cells again."""
    (study,) = parse((StudyArguments,), ["--config", str(STUDIES / f"{name}.yaml")], "study")
    keys = [cell.key for cell in configure(study).cells()]
    assert (len(keys), keys[0], fingerprint(keys)) == (count, first, all_of_them)


def test_a_source_without_a_kind_says_its_kind() -> None:
    """Written out, so that its address differs if the default does."""
    silent = StudyConfig.from_dict(GRID | {"sources": {"s": {"layer": 0}}})
    kind = RewardSourceArguments.kind
    assert silent.to_dict()["sources"]["s"]["kind"] == kind
    named = StudyConfig.from_dict(GRID | {"sources": {"s": {"kind": kind, "layer": 0}}})
    assert silent.cells()[0].key == named.cells()[0].key
