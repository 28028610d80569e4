"""A kind of reward source from another package goes through every command, without a line changed in surefoot."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from tests.models import WORDS, save_policy

pytestmark = pytest.mark.slow

ENTRY_POINTS = "[surefoot.sources]\nword_odds = word_odds:WordOdds\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the package as an installer leaves it, a policy, and forty pairs that prefer "cat" to "dog"."""
    root = tmp_path_factory.mktemp("own_kind")
    installed = root / "installed"
    about = installed / "word_odds-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("word_odds.py"), installed)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: word-odds\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    save_policy(root / "policy")
    rng = random.Random(0)
    rest = [" ".join(rng.choices([word for word in WORDS if word != "cat"], k=3)) for _ in range(40)]
    pairs = {
        "prompt": [f"the {WORDS[i % 10]} " for i in range(40)],
        "chosen": [f"cat {text}" for text in rest],
        "rejected": [f"dog {text}" for text in rest],
    }
    Dataset.from_dict(pairs).to_parquet(root / "pairs.parquet")
    return root


def surefoot(folder: Path, command: str, **settings: Any) -> str:
    """What the command printed, run as a user runs it."""
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    path = os.pathsep.join([str(folder / "installed"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "surefoot.cli.main", command, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_reward_score_diagnose_and_rloo(folder: Path) -> None:
    said = surefoot(folder, "reward", kind="word_odds", model_name_or_path="policy", dataset_name="pairs.parquet",
                    output_dir="reward", held_out=0.4, members=3, smoothing=0.5)  # fmt: skip
    assert "3 members" in said
    record = json.loads((folder / "reward" / "record.json").read_text())
    assert record["metrics"]["accuracy_of_mean"] > 0.9
    surefoot(folder, "score", source="reward/source", dataset_name="pairs.parquet", output="scored.parquet")
    scored = Dataset.from_parquet(str(folder / "scored.parquet"))
    assert min(scored["chosen_variance"]) > 0
    surefoot(folder, "diagnose", source="reward/source", dataset="pairs.parquet", output_dir="diagnosis")
    assert json.loads((folder / "diagnosis" / "diagnose.json").read_text())["members"] == 3
    surefoot(folder, "rloo", model_name_or_path="policy", dataset_name="pairs.parquet", reward_source="reward/source",
             output_dir="policy_run", per_device_train_batch_size=8, num_generations=4, max_completion_length=5,
             max_steps=2, beta=0.1, calibration_prompts=3, gradient_checkpointing="false", report_to="none",
             use_cpu="true")  # fmt: skip
    assert json.loads((folder / "policy_run" / "record.json").read_text())["metrics"]


def test_study(folder: Path, world_folder: Path) -> None:
    config = {
        "seeds": [0],
        "settings": {"uneven": {"world": "uneven", "pairs": 60, "held_out_pairs": 40}},
        "sources": {"odds": {"kind": "word_odds", "members": 3}},
        "methods": ["vanilla", "variance_aware"],
        "kl_budgets": [6.0],
        "evaluation_completions": 48,
        "policy": {"max_steps": 2, "calibration_prompts": 8},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(world_folder / "policy", folder / "study" / "world" / "policy")
    surefoot(folder, "study", config="study.yaml", output_dir="study", workers=1)
    cells = [json.loads(path.read_text()) for path in (folder / "study" / "cells").glob("*.json")]
    assert {(cell["source"], cell["method"]) for cell in cells} == {("odds", "vanilla"), ("odds", "variance_aware")}


def test_an_unknown_kind_is_named(folder: Path) -> None:
    with pytest.raises(AssertionError, match="word_odds"):
        surefoot(folder, "reward", kind="word_odd", model_name_or_path="policy", dataset_name="pairs.parquet",
                 output_dir="other")  # fmt: skip
