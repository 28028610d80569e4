"""`train_source` and `diagnose_source`: pairs by name or in memory, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot import diagnose_source, score_dataset, train_source
from surefoot.errors import ConfigError, DataError, ModelError, RunError
from tests.models import WORDS, save_policy

ROWS = [(f"the {WORDS[i % 10]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[i % 7]}") for i in range(40)]
PAIRS = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ROWS])
SETTINGS: dict[str, Any] = {"kind": "linear", "layer": 0, "held_out": 0.4}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


def test_pairs_in_memory_and_by_name_give_the_same_source(policy: Path, tmp_path: Path) -> None:
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    named = train_source(tmp_path / "pairs.jsonl", policy, tmp_path / "named", **SETTINGS)
    given = train_source(PAIRS, policy, tmp_path / "given", **SETTINGS)
    texts = (["the cat "] * 2, ["cat red", "dog red"])
    assert torch.equal(named.score(*texts), given.score(*texts))
    assert named.calibration is not None
    assert (tmp_path / "given" / "record.json").exists()


def test_the_same_call_again_loads_it_and_other_pairs_are_refused(policy: Path, tmp_path: Path) -> None:
    train_source(PAIRS, policy, tmp_path / "run", **SETTINGS)
    before = (tmp_path / "run" / "record.json").read_text()
    train_source(PAIRS, policy, tmp_path / "run", **SETTINGS)
    assert (tmp_path / "run" / "record.json").read_text() == before
    with pytest.raises(RunError, match="data_hash"):
        train_source(PAIRS.select(range(30)), policy, tmp_path / "run", **SETTINGS)


def test_pairs_to_evaluate_on_are_diagnosed_and_scored(policy: Path, tmp_path: Path) -> None:
    train, held_out = PAIRS.select(range(24)), PAIRS.select(range(24, 40))
    source = train_source(train, policy, tmp_path / "run", kind="linear", layer=0, eval_dataset=held_out)
    found = diagnose_source(tmp_path / "run" / "source", held_out, far_items=0)
    assert found["verdict"]["weighting"] in ("likely", "possible", "unlikely", "nothing")
    assert found["accuracy"]["overall"]["value"] == 1.0
    held_out.to_json(tmp_path / "held.jsonl")
    scored = score_dataset(tmp_path / "run" / "source", tmp_path / "held.jsonl", tmp_path / "scored.parquet")
    margins = Dataset.from_parquet(str(scored), keep_in_memory=True)["margin_mean"]
    rows = [source.score(held_out["prompt"], held_out[side]) for side in ("chosen", "rejected")]
    assert list(margins) == pytest.approx(source.margins(*rows).mean.tolist())


def test_what_is_wrong_is_told(policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="dataset has no column 'chosen'"):
        train_source(PAIRS.rename_column("chosen", "better"), policy, out, **SETTINGS)
    with pytest.raises(DataError, match="dataset is empty"):
        train_source(PAIRS.select([]), policy, out, **SETTINGS)
    with pytest.raises(DataError, match=r"can't load dataset 'pairs\.jsonl'"):
        train_source("pairs.jsonl", policy, out, **SETTINGS)
    with pytest.raises(ConfigError, match="kind: linear has no members"):
        train_source(PAIRS, policy, out, kind="linear", members=5)
    with pytest.raises(ModelError, match="can't load model"):
        train_source(PAIRS, tmp_path / "nothing", tmp_path / "two", **SETTINGS)
    with pytest.raises(ModelError, match="can't load reward source"):
        diagnose_source(out, PAIRS)
    with pytest.raises(DataError, match="is empty"):
        score_dataset(train_source(PAIRS, policy, out, **SETTINGS), PAIRS.select([]), out / "scored.jsonl")
