"""Every way in which other libraries for uncertain rewards were seen to fail, as a user would meet it here."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

import surefoot
from surefoot.cli.main import main
from surefoot.errors import DataError, VarianceError
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from tests.models import save_reward_model

ROOT = Path(surefoot.__file__).parents[2]
KINDS = ["linear", "heads", "mlp heads", "lora", "laplace", "dropout", "independent"]


@pytest.fixture(scope="module")
def model_path(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(policy_path, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def make(policy_path: Path, model_path: Path, pairs: Dataset) -> Callable[[str], RewardSource]:
    makers: dict[str, Callable[[], RewardSource]] = {
        "heads": lambda: train_heads(pairs, policy_path, HeadsConfig(members=2, epochs=2), device="cpu"),
        "mlp heads": lambda: train_heads(pairs, policy_path, HeadsConfig(2, head="mlp", epochs=2), device="cpu"),
        "lora": lambda: train_lora(pairs, policy_path, LoraConfig(members=2, epochs=1), device="cpu"),
        "linear": lambda: fit_linear(pairs, policy_path, LinearConfig(), device="cpu"),
        "laplace": lambda: fit_laplace(pairs, model_path, LaplaceConfig(), device="cpu"),
        "dropout": lambda: DropoutMembers.from_model(model_path, DropoutConfig(members=2), device="cpu"),
        "independent": lambda: IndependentMembers.from_models([model_path, model_path], device="cpu"),
    }
    return lambda kind: makers[kind]()


def test_every_public_name_imports_with_what_is_installed() -> None:
    assert len(surefoot.__all__) > 10
    assert [name for name in surefoot.__all__ if not hasattr(surefoot, name)] == []


def test_the_readmes_imports_work() -> None:
    text = (ROOT / "README.md").read_text()
    lines = [
        line.strip()
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.strip().startswith(("import ", "from ")) and "surefoot" in line
    ]
    assert lines
    for line in lines:
        exec(line, {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_counts_and_every_kind_scores(kind: str, make: Callable[[str], RewardSource]) -> None:
    rows = make(kind).score(["red cat ", "green dog "], ["runs and", "runs and"])
    assert bool(rows.isfinite().all())
    assert float((rows[0] - rows[1]).abs().max()) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_two_prompts_and_one_completion(kind: str, make: Callable[[str], RewardSource]) -> None:
    with pytest.raises(DataError, match="got 2 prompts and 1 completions; give one completion for each prompt"):
        make(kind).score(["a ", "the "], ["cat"])


@pytest.mark.parametrize(
    "source", [FunctionMembers(lambda p, c: [[1.0, 2.0]], 2), FunctionReward(lambda p, c: ([1.0], [1.0]))]
)
def test_two_prompts_and_one_completion_of_a_function(source: RewardSource) -> None:
    with pytest.raises(DataError, match="got 2 prompts and 1 completions"):
        source.score(["a ", "the "], ["cat"])


def test_features_are_not_those_of_older_weights_at_the_same_path(
    policy_path: Path, pairs: Dataset, tmp_path: Path
) -> None:
    trunk = tmp_path / "trunk"
    shutil.copytree(policy_path, trunk)
    settings = HeadsConfig(members=2, epochs=2)
    first = train_heads(pairs, trunk, settings, cache_directory=tmp_path / "cache", device="cpu")
    model = AutoModel.from_pretrained(trunk)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    model.save_pretrained(tmp_path / "trained")
    shutil.rmtree(trunk)  # never written over: models that were loaded from there may still read the old file
    (tmp_path / "trained").rename(trunk)
    AutoTokenizer.from_pretrained(policy_path).save_pretrained(trunk)
    second = train_heads(pairs, trunk, settings, cache_directory=tmp_path / "cache", device="cpu")
    fresh = train_heads(pairs, trunk, settings, device="cpu")
    scores = [source.score(pairs["prompt"], pairs["chosen"]) for source in (first, second, fresh)]
    torch.testing.assert_close(scores[1], scores[2])
    assert float((scores[0] - scores[1]).abs().max()) > 1e-4


def test_one_member_has_no_variance_rather_than_zero(policy_path: Path, pairs: Dataset) -> None:
    source = train_heads(pairs, policy_path, HeadsConfig(members=1, epochs=1), device="cpu")
    rows = source.score(pairs["prompt"], pairs["chosen"])
    assert source.calibrate(rows).reference_variance is None
    with pytest.raises(VarianceError):
        _ = source.estimate(rows).variance


def table(**columns: list[Any]) -> Dataset:
    rows = {"prompt": ["a ", "the "], "chosen": ["cat", "cat and"], "rejected": ["dog", "dog and"]}
    return Dataset.from_dict(rows | columns)


def longer() -> Dataset:
    words = [f"{word} cat runs " for word in ("red", "green", "blue", "a", "the", "and", "dog", "sleeps")]
    return Dataset.from_dict({"prompt": words, "chosen": ["cat"] * 8, "rejected": ["dog"] * 8})


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (table(), ["--learning_rat", "1e-3"], "learning_rate"),
        (table(margin=[1.0, float("nan")]), [], r"margin.*row 1|row 1.*margin"),
        (table(chosen=["cat", None]), [], r"chosen.*row 1|row 1.*chosen"),
        (table().select([]), [], "empty|no rows"),
        (longer(), ["--max_length", "2", "--held_out", "0.5"], r"longer than max_length=2 tokens"),
    ],
    ids=["typo", "NaN margin", "None", "empty", "all too long"],
)
def test_bad_input_is_named_before_any_work(
    data: Dataset, more: list[str], message: str, policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.to_parquet(tmp_path / "pairs.parquet")
    words = {
        "kind": "heads",
        "model_name_or_path": policy_path,
        "dataset_name": tmp_path / "pairs.parquet",
        "output_dir": tmp_path / "run",
    }
    code = main(["reward", *(word for key, value in words.items() for word in (f"--{key}", str(value))), *more])
    said = capsys.readouterr().err
    assert code != 0
    assert re.search(message, said, re.DOTALL), said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "source").exists()


def test_a_source_says_what_it_is(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    pairs.to_parquet(tmp_path / "pairs.parquet")
    words = ["--model_name_or_path", str(policy_path), "--dataset_name", str(tmp_path / "pairs.parquet")]
    assert (
        main(
            [
                "reward",
                "--kind=heads",
                *words,
                "--output_dir",
                str(tmp_path / "run"),
                "--epochs",
                "1",
                "--held_out",
                "0.4",
            ]
        )
        == 0
    )
    card = (tmp_path / "run" / "source" / "README.md").read_text()
    assert "kind `heads`: 50 members" in card
    assert load_source(tmp_path / "run" / "source", "cpu").calibration is not None
