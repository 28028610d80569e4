"""`surefoot score`: what is added, what is kept, what an interruption costs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError, RunError
from surefoot.rewards.functions import FunctionMembers
from surefoot.rewards.scoring import score_dataset
from surefoot.rewards.source import load_source


def lengths(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
    """Two members that differ by the completion's length."""
    return [[float(len(str(c))), 3.0 * len(str(c))] for c in completions]


def table(rows: int = 10, group: int = 2) -> Dataset:
    return Dataset.from_dict({
        "prompt": [f"p{i // group}" for i in range(rows)],
        "completion": ["x" * (1 + i % 5) for i in range(rows)],
        "id": list(range(rows)),
    })  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("chunk", [3, 100])
def test_columns_are_added_and_prompts_are_not_split(tmp_path: Path, suffix: str, chunk: int) -> None:
    source, data = FunctionMembers(lengths, 2), table()
    source.calibrate(source.score(data["prompt"], data["completion"]), torch.arange(10) // 2)
    path = score_dataset(source, data, tmp_path / f"out.{suffix}", chunk_rows=chunk)
    rows = (
        pq.read_table(path).to_pylist()
        if suffix == "parquet"
        else [json.loads(x) for x in path.read_text().splitlines()]
    )
    expected = source.estimate(source.score(data["prompt"], data["completion"]), torch.arange(10) // 2)
    assert [row["id"] for row in rows] == list(range(10))
    assert [row["reward_mean"] for row in rows] == pytest.approx(expected.mean.tolist())
    assert [row["reward_variance"] for row in rows] == pytest.approx(expected.variance.tolist())
    assert not list(tmp_path.glob("*.parts"))


def test_pairs_get_margins(tmp_path: Path) -> None:
    source = FunctionMembers(lengths, 2)
    data = Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["xx", "x"], "rejected": ["x", "xxxx"]})
    (first, second) = pq.read_table(score_dataset(source, data, tmp_path / "out.parquet")).to_pylist()
    assert first["margin_mean"] == 2.0
    assert first["margin_variance"] == 2.0  # margins 1 and 3
    assert second["margin_mean"] == -6.0


def test_an_interruption_costs_one_chunk(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return lengths(prompts, completions)

    data = table(12)
    with pytest.raises(KeyboardInterrupt):
        score_dataset(FunctionMembers(counting, 2), data, tmp_path / "out.parquet", chunk_rows=4)
    assert not (tmp_path / "out.parquet").exists()
    score_dataset(FunctionMembers(counting, 2), data, tmp_path / "out.parquet", chunk_rows=4)
    assert calls == [4, 4, 4, 4]  # the third was lost; the first two were not repeated
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 12


def test_one_member_leaves_the_variance_empty(tmp_path: Path) -> None:
    source = FunctionMembers(lambda p, c: [[float(len(x))] for x in c], 1)
    rows = pq.read_table(score_dataset(source, table(4), tmp_path / "out.parquet")).to_pylist()
    assert [row["reward_variance"] for row in rows] == [None] * 4
    assert [row["reward_mean"] for row in rows] == [1.0, 2.0, 3.0, 4.0]


def test_an_unscored_row_is_null_and_never_zero(tmp_path: Path) -> None:
    def some(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        return [[float("nan")] * 2 if c == "xx" else [1.0, len(c)] for c in completions]

    rows = pq.read_table(score_dataset(FunctionMembers(some, 2), table(6, 6), tmp_path / "o.parquet")).to_pylist()
    assert rows[1]["reward_mean"] is None
    assert rows[1]["reward_variance"] is None
    assert rows[2]["reward_mean"] is not None


def test_what_is_refused(tmp_path: Path) -> None:
    source = FunctionMembers(lengths, 2)
    with pytest.raises(DataError, match="no completion among"):
        score_dataset(source, Dataset.from_dict({"prompt": ["a"], "text": ["b"]}), tmp_path / "o.parquet")
    hole = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["x", None]})
    with pytest.raises(DataError, match="row 1 has no completion"):
        score_dataset(source, hole, tmp_path / "o.parquet")
    with pytest.raises(DataError, match="already has reward_mean"):
        score_dataset(source, table(2).add_column("reward_mean", [0.0, 0.0]), tmp_path / "o.parquet")
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.jsonl"):
        score_dataset(source, table(2), tmp_path / "o.csv")
    (tmp_path / "there.parquet").write_text("")
    with pytest.raises(RunError, match="exists"):
        score_dataset(source, table(2), tmp_path / "there.parquet")


def test_the_command(policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["the red cat", "a dog"]
    pairs = {"prompt": ["the "] * 40, "chosen": ["cat runs"] * 40, "rejected": ["dog and", "dog"] * 20}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    settings = ["--held_out=0.4", "--epochs=2", "--max_length=16", f"--dataset_name={tmp_path / 'pairs.parquet'}"]
    pairs["prompt"] = [f"{w} " for w in ["the", "a", "red", "green"] * 10]
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    assert main(["reward", *settings, f"--model_name_or_path={policy_path}", f"--output_dir={tmp_path / 'run'}"]) == 0
    Dataset.from_dict({"prompt": words, "completion": ["sleeps", "runs"]}).to_json(tmp_path / "in.jsonl")
    command = ["score", f"--source={tmp_path / 'run' / 'source'}", f"--dataset_name={tmp_path / 'in.jsonl'}"]
    assert main([*command, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    (first, _) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    source = load_source(tmp_path / "run" / "source")
    assert first["reward_mean"] == pytest.approx(float(source.score(words[:1], ["sleeps"]).mean()), rel=1e-4)
    assert main([*command, f"--output={tmp_path / 'out.jsonl'}"]) == 1
    assert "exists" in capsys.readouterr().err


def test_conversational_rows(tmp_path: Path) -> None:
    """Messages are scored as they are, kept as they are, and grouped by their prompt."""
    source = FunctionMembers(lengths, 2)

    def chat(role: str, *texts: str) -> list[list[dict[str, str]]]:
        return [[{"role": role, "content": text}] for text in texts]

    data = Dataset.from_dict({
        "prompt": chat("user", "a", "a", "b", "b"),
        "completion": chat("assistant", "x", "xxx", "xx", "xxxxx"),
    })  # fmt: skip
    source.calibrate(source.score(data["prompt"], data["completion"]), torch.tensor([0, 0, 1, 1]))
    rows = pq.read_table(score_dataset(source, data, tmp_path / "out.parquet")).to_pylist()
    expected = source.estimate(source.score(data["prompt"], data["completion"]), torch.tensor([0, 0, 1, 1]))
    assert [row["prompt"][0]["content"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["reward_mean"] for row in rows] == pytest.approx(expected.mean.tolist())
    assert [row["reward_variance"] for row in rows] == pytest.approx(expected.variance.tolist())
