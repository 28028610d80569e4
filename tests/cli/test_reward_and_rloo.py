"""The commands as a user runs them, on a tiny model: train a source, align with it, come back, and be told off."""

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.cli.reward import next_command
from surefoot.rewards.registry import load_source
from tests.models import WORDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:the variance of 'heads' is nearly the same"),
    pytest.mark.filterwarnings("ignore:the variance of 'heads' has a reliability of"),
]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs in which the text with "cat" is chosen."""
    rng = random.Random(0)
    rows: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
    for i in range(40):
        rest = " ".join(rng.choices([w for w in WORDS if w != "cat"], k=3))
        rows["prompt"].append(f"the {WORDS[i % 10]} ")
        rows["chosen"].append(f"cat {rest}")
        rows["rejected"].append(f"dog {rest}")
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    Dataset.from_dict(rows).to_parquet(path)
    return path


def reward_words(policy: Path, preferences: Path, output: Path, **changes: Any) -> list[str]:
    settings = {
        "kind": "heads",
        "model_name_or_path": policy,
        "dataset_name": preferences,
        "output_dir": output,
        "held_out": 0.4,
        "epochs": 20,
        "layer": 0,
        "max_length": 16,
    } | changes
    return ["reward", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def rloo_words(policy: Path, preferences: Path, source: Path, output: Path, **changes: Any) -> list[str]:
    settings = {
        "model_name_or_path": policy,
        "dataset_name": preferences,
        "reward_source": source,
        "output_dir": output,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "max_steps": 4,
        "save_steps": 2,
        "beta": 0.1,
        "learning_rate": 1e-3,
        "calibration_prompts": 3,
        "gradient_checkpointing": "false",
        "report_to": "none",
        "use_cpu": "true",
    } | changes
    return ["rloo", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, policy_path: Path, preferences: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "reward"
    assert main(reward_words(policy_path, preferences, output)) == 0
    return output / "source"


def test_a_trained_source_knows_what_was_preferred(source: Path) -> None:
    record = json.loads((source.parent / "record.json").read_text())
    assert record["metrics"]["accuracy_of_mean"] > 0.9
    assert record["config"]["held_out"] == 0.4
    loaded = load_source(source, device="cpu")
    scores = loaded.score(["the red "] * 2, ["cat runs and", "dog runs and"])
    assert bool((scores[0] > scores[1]).all())
    assert loaded.calibration is not None
    assert loaded.calibration.prior is not None


def test_the_same_command_again_does_nothing(source: Path, policy_path: Path, preferences: Path) -> None:
    before = (source / "heads.safetensors").stat().st_mtime_ns
    assert main(reward_words(policy_path, preferences, source.parent)) == 0
    assert (source / "heads.safetensors").stat().st_mtime_ns == before


def test_another_run_in_the_same_directory_is_refused(
    source: Path, policy_path: Path, preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(reward_words(policy_path, preferences, source.parent, seed=1)) == 1
    assert "holds another run (seed: None there, 1 here)" in capsys.readouterr().err


def test_independent_members_from_the_command(policy_path: Path, preferences: Path, tmp_path: Path) -> None:
    words = reward_words(policy_path, preferences, tmp_path / "r", kind="independent", members=2, epochs=1)
    del words[words.index("--layer") : words.index("--layer") + 2]
    assert main(words) == 0
    record = json.loads((tmp_path / "r" / "record.json").read_text())
    assert len(record["metrics"]["accuracy_of_members"]) == 2
    assert load_source(tmp_path / "r" / "source", device="cpu").calibration is not None


def test_a_policy_is_aligned_and_recorded(source: Path, policy_path: Path, preferences: Path, tmp_path: Path) -> None:
    output = tmp_path / "aligned"
    words = rloo_words(policy_path, preferences, source, output)
    assert main(words) == 0
    record = json.loads((output / "record.json").read_text())
    assert record["kind"] == "rloo"
    assert record["metrics"]["steps"] == 4
    assert record["metrics"]["calibration"]["prior"]["variance"] > 0
    assert record["data_hash"]
    assert (output / "model.safetensors").exists()
    assert main(words) == 0  # finished: told so, nothing trained


def test_an_interrupted_policy_run_goes_on(source: Path, policy_path: Path, preferences: Path, tmp_path: Path) -> None:
    words = rloo_words(policy_path, preferences, source, tmp_path / "a")
    assert main(words) == 0
    (tmp_path / "a" / "record.json").unlink()  # as if stopped after checkpoint 4
    assert main(words) == 0
    assert json.loads((tmp_path / "a" / "record.json").read_text())["metrics"]["steps"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "varience_aware"}, "did you mean 'variance_aware'"),
        ({"bta": 0.2}, "unknown setting 'bta' in the command line; did you mean 'beta'"),
        ({"dataset_name": "nowhere.parquet"}, "can't load dataset 'nowhere.parquet': there is no such path here"),
        ({"model_name_or_path": "/nowhere/model"}, "can't load model '/nowhere/model'"),
        ({"reward_source": "/nowhere/source"}, "can't load reward source '/nowhere/source'"),
        ({"reward_models": "x"}, "exactly one of reward_source"),
    ],
)
def test_mistakes_are_said_before_any_work(
    source: Path,
    policy_path: Path,
    preferences: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    assert main(rloo_words(policy_path, preferences, source, tmp_path / "x", **changes)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_a_policy_directory_without_weights(
    source: Path, policy_path: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((policy_path / "config.json").read_text())
    assert main(rloo_words(empty, preferences, source, tmp_path / "x")) == 1
    assert "holds no *.safetensors weights" in capsys.readouterr().err


def test_one_member_is_refused_where_a_variance_is_asked_for(
    policy_path: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(reward_words(policy_path, preferences, tmp_path / "one", members=1)) == 0
    assert "One member has no variance" in capsys.readouterr().out
    words = rloo_words(policy_path, preferences, tmp_path / "one" / "source", tmp_path / "x")
    assert main(words) == 1
    assert "has one member" in capsys.readouterr().err
    assert (
        main(rloo_words(policy_path, preferences, tmp_path / "one" / "source", tmp_path / "y", preset="vanilla")) == 0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "independnt"}, "kind must be one of .*distilled, dropout, function, heads, independent"),
        ({"kind": "independent"}, r"kind: independent has no layer \(kind: distilled or heads or linear\)"),
        ({"bootstrap": "resample"}, "bootstrap must be one of none, poisson, exponential"),
        ({"members": 0}, "members must be at least 1"),
        ({"max_length": 2}, "longer than max_length=2 tokens"),
        ({"dataset_test_split": "test"}, "has no split|split 'test'"),
    ],
)
def test_reward_settings_are_checked(
    policy_path: Path,
    preferences: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    import re

    assert main(reward_words(policy_path, preferences, tmp_path / "x", **changes)) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:the variance of")
@pytest.mark.parametrize("kind", ["linear", "lora", "laplace", "dropout", "distilled"])
def test_every_kind_from_settings_to_a_policy(
    kind: str, policy_path: Path, preferences: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = policy_path
    if kind in ("laplace", "dropout"):  # these need a reward model that exists
        words = ["--kind=independent", "--members=1", "--epochs=1", "--max_length=16", "--held_out=0.4"]
        words += [f"--model_name_or_path={policy_path}", f"--dataset_name={preferences}"]
        assert main(["reward", *words, f"--output_dir={tmp_path / 'rm'}"]) == 0
        base = tmp_path / "rm" / "source" / "members" / "0"
    words = [f"--kind={kind}", f"--model_name_or_path={base}", f"--dataset_name={preferences}", "--held_out=0.4"]
    words += [f"--output_dir={tmp_path / 'run'}", "--max_length=16"]
    if kind == "distilled":
        words.append(f"--teacher={source}")
    capsys.readouterr()
    assert main(["reward", *words]) == 0
    assert "accuracy on" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["variance_factor"] > 0
    found = load_source(tmp_path / "run" / "source", "cpu")
    assert found.variance_factor == pytest.approx(record["metrics"]["variance_factor"])
    assert found.estimate(found.score(["the ", "the "], ["cat", "dog red"])).has_variance
    assert main(rloo_words(policy_path, preferences, tmp_path / "run" / "source", tmp_path / "policy")) == 0
    assert (tmp_path / "policy" / "model.safetensors").exists()


def test_settings_of_other_kinds_are_refused(
    policy_path: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--model_name_or_path={policy_path}", f"--dataset_name={preferences}", f"--output_dir={tmp_path / 'x'}"]
    assert main(["reward", *words, "--kind=laplace", "--targets=q_proj"]) == 1
    assert "kind: laplace has no targets (kind: independent or lora)" in capsys.readouterr().err
    assert main(["reward", *words, "--kind=distilled"]) == 1
    assert "needs teacher" in capsys.readouterr().err


def test_the_next_command_runs_as_printed(
    policy_path: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder whose name has a space, brackets that rich would read as markup, and a quote."""
    folder = tmp_path / "it's my [bold]run"
    split = Dataset.from_parquet(str(preferences), keep_in_memory=True)
    split = split.add_column("split", ["test" if row % 3 == 0 else "train" for row in range(len(split))])
    data = tmp_path / "with splits.parquet"
    split.to_parquet(data)
    words = reward_words(
        policy_path, data, folder, max_length=64, dataset_train_split="train", dataset_test_split="test"
    )
    assert main(words) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: "))
    assert shlex.split(line.removeprefix("Next: "))[:4] == [
        "surefoot", "diagnose", "--reward_source", f"{folder}/source",
    ]  # fmt: skip
    assert main(shlex.split(line)[2:]) == 0
    assert (folder / "source" / "diagnose.json").exists()


def test_the_next_command_says_where_judges_are_asked() -> None:
    judge = {"kind": "judge", "endpoint": "http://h/v1", "key_variable": "KEY", "dataset_config": "c"}
    assert next_command("runs/a b", judge) == (
        "surefoot diagnose --reward_source 'runs/a b/source' --dataset_config c --judge_endpoint http://h/v1 "
        "--judge_key_variable KEY"
    )
    mixed = {"kind": "mixed", "judges": "judges.yaml"}
    assert next_command("r", mixed) == "surefoot diagnose --reward_source r/source --judges judges.yaml"
