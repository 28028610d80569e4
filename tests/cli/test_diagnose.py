"""`surefoot diagnose` on a saved source: the files it leaves, and what it refuses."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.rewards.train_heads import HeadsConfig, train_heads
from tests.models import WORDS


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"the {WORDS[i % 10]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 9]} and") for i in range(40)]
    path = tmp_path_factory.mktemp("d") / "pairs.parquet"
    columns = {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))}
    Dataset.from_dict(columns).to_parquet(path)
    return path


def source(policy: Path, pairs: Path, folder: Path, members: int) -> Path:
    config = HeadsConfig(members=members, epochs=2, layer=0, max_length=16)
    train_heads(Dataset.from_parquet(str(pairs)), policy, config, device="cpu").save(folder)
    return folder


def test_it_writes_what_it_prints(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(policy_path, pairs, tmp_path / "s", 4)
    assert main(["diagnose", "--source", str(folder), "--dataset", str(pairs)]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "diagnose.json").read_text())
    assert found["members"] == 4
    assert found["pairs"] == 40
    assert f"{found['agreement']:.3f}" in shown
    assert "<svg" in (folder / "diagnose.html").read_text()


def test_one_member_and_contradictory_settings(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(policy_path, pairs, tmp_path / "one", 1)
    assert main(["diagnose", "--source", str(folder), "--dataset", str(pairs)]) == 1
    assert "has one member, and one member can't disagree" in capsys.readouterr().err
    assert main(["diagnose", "--dataset", str(pairs)]) == 1
    assert "give either source" in capsys.readouterr().err
    assert main(["diagnose", "--source", str(folder)]) == 1
    assert "dataset is missing" in capsys.readouterr().err
    assert main(["diagnose", "--models", "a", "b", "--dataset", str(pairs)]) == 1
    assert "say where the result goes" in capsys.readouterr().err
