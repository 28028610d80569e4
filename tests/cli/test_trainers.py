"""`surefoot grpo`, `dpo` and `bon` as a user runs them, on a tiny model; and `--accelerate_config`."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from surefoot.cli.launching import launch_command
from surefoot.cli.main import main
from surefoot.errors import ConfigError
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_cache import source_hash
from surefoot.training import best_of_n
from tests.models import WORDS

pytestmark = pytest.mark.filterwarnings("ignore:the variance of 'heads' is nearly the same")

SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 8, "max_steps": 4, "save_steps": 2, "beta": 0.1, "learning_rate": 1e-3,
    "gradient_checkpointing": "false", "logging_steps": 1, "report_to": "none", "use_cpu": "true",
}  # fmt: skip


def words(command: str, **settings: Any) -> list[str]:
    return [command, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    rows: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
    for i in range(40):
        rest = " ".join(rng.choices([w for w in WORDS if w != "cat"], k=3))
        rows["prompt"].append(f"the {WORDS[i % 10]}")
        rows["chosen"].append(f" cat {rest}")
        rows["rejected"].append(f" dog {rest}")
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    Dataset.from_dict(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, policy_path: Path, preferences: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "reward"
    settings = {"model_name_or_path": policy_path, "dataset_name": preferences, "output_dir": output}
    assert main(words("reward", kind="heads", **settings, held_out=0.4, epochs=20, layer=0, max_length=16)) == 0
    return output / "source"


def test_grpo(source: Path, policy_path: Path, preferences: Path, tmp_path: Path) -> None:
    settings = SMALL | {
        "model_name_or_path": policy_path, "dataset_name": preferences, "reward_source": source,
        "output_dir": tmp_path / "out", "num_generations": 4, "max_completion_length": 5, "calibration_prompts": 3,
    }  # fmt: skip
    assert main(words("grpo", **settings)) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert (record["kind"], record["metrics"]["steps"]) == ("grpo", 4)
    assert record["metrics"]["end"]["sequence_kl"] is not None
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_dpo_from_scored_pairs_and_from_a_source(
    source: Path, policy_path: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SMALL | {"model_name_or_path": policy_path, "dataset_name": preferences, "output_dir": tmp_path / "x"}
    assert main(words("dpo", **settings)) == 1
    assert "give reward_source, score the pairs first with `surefoot score`" in capsys.readouterr().err
    scored = tmp_path / "scored.parquet"
    assert main(words("score", source=source, dataset_name=preferences, output=scored)) == 0
    first = settings | {"dataset_name": scored, "output_dir": tmp_path / "a"}
    second = settings | {"reward_source": source, "output_dir": tmp_path / "b"}
    assert main(words("dpo", **first)) == 0
    assert main(words("dpo", **second)) == 0
    assert "pairs scored: " in capsys.readouterr().err
    (key,) = (tmp_path / "b" / "scores").iterdir()  # from which an interrupted run goes on
    assert key.name == source_hash(load_source(source), source)
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in "ab"]
    assert records[0]["metrics"]["steps"] == 4
    assert records[0]["metrics"]["end"] == pytest.approx(records[1]["metrics"]["end"], rel=1e-5)
    assert records[0]["metrics"]["end"]["loss"] < records[0]["metrics"]["start"]["loss"]


def test_best_of_n_resumes_and_chooses_the_best(
    source: Path, policy_path: Path, preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "model_name_or_path": policy_path, "dataset_name": preferences, "reward_source": source, "n": 6,
        "gold": source, "max_completion_length": 4, "prompts_per_batch": 4,
    }  # fmt: skip
    calls: list[int] = []
    real = best_of_n.sample_completions

    def counted(*positional: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*positional, **keywords)

    monkeypatch.setattr(best_of_n, "sample_completions", counted)
    assert main(words("bon", **settings, output_dir=tmp_path / "a")) == 130
    assert main(words("bon", **settings, output_dir=tmp_path / "a")) == 0
    assert len(calls) == 4  # ten prompts are three batches; the interrupted one is done again
    assert main(words("bon", **settings, output_dir=tmp_path / "b")) == 0
    tables = [pq.read_table(tmp_path / name / "chosen.parquet").to_pylist() for name in "ab"]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 10
    samples = pq.read_table(tmp_path / "a" / "parts" / "00000000.parquet").to_pylist()
    best = max((row for row in samples if row["prompt"] == tables[0][0]["prompt"]), key=lambda row: row["reward"])
    assert tables[0][0]["reward"] == best["reward"]
    metrics = json.loads((tmp_path / "a" / "record.json").read_text())["metrics"]
    assert metrics["n"] == [1, 2, 4, 6]
    curve = [point["value"] for point in metrics["reward"]]
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(sum(row["reward"] for row in tables[0]) / 10)
    gold = [row["gold"] for row in samples]
    assert gold == pytest.approx([row["reward_mean"] for row in samples])


def test_accelerate_configs_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert launch_command("rloo", ["--beta", "0.1"]) is None
    found = launch_command("grpo", ["--accelerate_config=fsdp2", "--beta", "0.1"])
    assert found is not None
    assert Path(found[found.index("--config_file") + 1]).name == "fsdp2.yaml"
    assert found[-5:] == ["-m", "surefoot.cli.main", "grpo", "--beta", "0.1"]
    mine = tmp_path / "mine.yaml"
    mine.write_text("num_processes: 1\n")
    found = launch_command("dpo", ["--accelerate_config", str(mine)])
    assert found is not None
    assert str(mine) in found
    with pytest.raises(ConfigError, match="neither a file nor one of TRL's configs"):
        launch_command("dpo", ["--accelerate_config", "nowhere"])
    with pytest.raises(ConfigError, match="needs a file"):
        launch_command("dpo", ["--accelerate_config"])
