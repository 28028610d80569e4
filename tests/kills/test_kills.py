"""Every long run that is killed at any write, and at random moments, is mended by the same run again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import ModelConfig

from surefoot.cli.diagnose import run as diagnose
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.run import run_reward
from surefoot.rewards.score_dataset import score_dataset
from surefoot.studies.config import StudyConfig, method_settings
from surefoot.studies.run import run_study
from surefoot.training import prepare_anchors
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.run_online import OnlineScriptArguments, run_policy_gradient
from tests.kills.killing import Kills, survive
from tests.models import WORDS, save_policy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # fork beside threads, which the child lacks
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    rows = [(f"the {WORDS[i % 5]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 7]} and") for i in range(24)]
    return Dataset.from_dict({key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))})


@pytest.fixture(scope="module")
def linear(policy: str, pairs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved source."""
    folder = tmp_path_factory.mktemp("linear") / "source"
    fit_linear(pairs, policy, LinearConfig(penalty=1.0)).save(folder)
    return folder


@pytest.fixture(scope="module")
def single(policy: str, pairs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One plain reward model."""
    folder = tmp_path_factory.mktemp("single")
    args = reward_arguments(
        output_dir=str(folder),
        dataset_name="pairs",
        model_name_or_path=policy,
        kind="independent",
        members=1,
        bootstrap="none",
        epochs=1,
        batch_size=8,
    )
    run_reward(args, {}, pairs=(pairs, pairs))
    return str(folder / "source" / "members" / "0")


@pytest.fixture
def survives(tmp_path: Path, record_property: Any) -> Callable[..., None]:
    """Runs `survive` and keeps the number of kills with the test's result."""

    def call(run: Callable[[], Any], every: int = 1) -> None:
        kills: Kills = survive(run, tmp_path, every=every)
        record_property("kills", f"{kills.at_events} at events, {kills.at_random} at random moments")
        assert kills.at_events >= 5
        assert kills.at_random == 10

    return call


KINDS: dict[str, dict[str, Any]] = {
    "independent": {"members": 2, "epochs": 1, "batch_size": 8},
    "linear": {"penalty": 1.0},
    "heads": {"members": 2, "epochs": 1, "trunk_epochs": 1, "batch_size": 8},
    "lora": {"members": 2, "epochs": 1, "batch_size": 8, "rank": 2},
    "laplace": {"structure": "full", "precision": 1.0},
    "distilled": {},
    "smoothed": {"members": 2, "epochs": 1, "batch_size": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_reward(
    kind: str, policy: str, single: str, linear: Path, pairs: Dataset, survives: Callable[..., None]
) -> None:
    settings = {"kind": kind} | KINDS[kind]
    if kind == "smoothed":
        settings |= {"kind": "independent", "variance": "smoothed"}
    if kind == "distilled":
        settings |= {"teacher": str(linear)}
    base = single if kind == "laplace" else policy

    def run() -> None:
        args = reward_arguments(output_dir="run", dataset_name="pairs", model_name_or_path=base, **settings)
        run_reward(args, settings, pairs=(pairs.select(range(20)), pairs.select(range(20, 24))))

    survives(run)


def panel(prompts: Any, completions: Any) -> list[list[float]]:
    counts = [(text.count("cat"), text.count("dog"), len(text)) for text in completions]
    return [
        [cat + 0.1 * size, cat + 2.0 * dog, cat - 2.0 * dog, cat + dog - 0.1 * size, cat - dog]
        for cat, dog, size in counts
    ]


@pytest.mark.parametrize("output", ["scored.parquet", "scored.jsonl"])
def test_score(output: str, pairs: Dataset, survives: Callable[..., None]) -> None:
    survives(lambda: score_dataset(FunctionMembers(panel, 5), pairs, output, chunk_rows=6))


def test_diagnose(
    linear: Path, pairs: Dataset, tmp_path_factory: pytest.TempPathFactory, survives: Callable[..., None]
) -> None:
    data = tmp_path_factory.mktemp("data") / "pairs.parquet"
    pairs.to_parquet(data)
    words = ["--reward_source", str(linear), "--dataset_name", str(data), "--output_dir", "found", "--far_items", "4"]
    survives(lambda: diagnose(words))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    Dataset.from_dict({"prompt": ["the cat", "a dog", "red and", "green"]}).to_parquet(path)
    return str(path)


def test_anchors(policy: str, linear: Path, prompts: str, survives: Callable[..., None]) -> None:
    def run() -> None:
        prepare_anchors._SAVE_SECONDS = 0.0
        prepare_anchors.prepare_anchors(
            prepare_anchors.AnchorArguments(
                "anchors.safetensors",
                policy,
                prompts,
                reward_source=str(linear),
                anchor_completions=2,
                max_completion_length=4,
                prompts_per_batch=2,
            )
        )

    survives(run)


def test_rloo_past_its_first_epoch(policy: str, prompts: str, survives: Callable[..., None]) -> None:
    """Four prompts, two in a step: two steps an epoch, three steps, a checkpoint after the second and the last."""

    def run() -> None:
        args = VarianceAwareRLOOConfig(
            output_dir="run", per_device_train_batch_size=4, num_generations=2, max_completion_length=4, max_steps=3,
            save_steps=2, beta=0.2, learning_rate=1e-3, calibration_prompts=2, anchor_completions=2, logging_steps=1,
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
            preset="vanilla",
        )  # fmt: skip
        script = OnlineScriptArguments(dataset_name=prompts, reward_source="a function")
        run_policy_gradient("rloo", script, args, ModelConfig(policy), {"x": 1}, FunctionMembers(panel, 5))

    survives(run)


def test_study_past_its_first_epoch(
    policy: str, prompts: str, pairs: Dataset, tmp_path_factory: pytest.TempPathFactory, survives: Callable[..., None]
) -> None:
    """Two prompts in a step, so that a cell's three steps are more than an epoch; a checkpoint after the second."""
    folder = tmp_path_factory.mktemp("study")
    pairs.to_parquet(folder / "pairs.parquet")
    (folder / "gold.py").write_text(
        "def cats(prompts, completions):\n    return [float(text.count('cat')) for text in completions]\n"
    )
    setting = {
        "model": policy,
        "prompts": prompts,
        "preferences": str(folder / "pairs.parquet"),
        "pairs": 10,
        "held_out_pairs": 4,
        "gold": {"function": f"{folder / 'gold.py'}:cats"},
    }
    steps = {"max_steps": 3, "save_steps": 2, "per_device_train_batch_size": 4, "num_generations": 2}
    small = {"max_completion_length": 4, "calibration_prompts": 2, "anchor_completions": 2, "learning_rate": 1e-3}
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    config = StudyConfig(
        settings={"mine": setting},
        sources={"linear": {"kind": "linear", "penalty": 1.0}},
        methods=method_settings(["mean"]),
        kl_budgets=(None,),
        seeds=(0,),
        trainer="rloo",
        policy=steps | small | plain | {"disable_tqdm": True, "logging_steps": 1},
        evaluation_completions=4,
        samples_kept=1,
    )

    def run() -> None:
        outcome = run_study(config, Path("study"), title="x", retry_failed=True)
        assert outcome.finished == 1, [path.read_text() for path in Path("study/failed").glob("*")]

    survives(run, every=4)  # sources and checkpoints have tests of their own, at every write
