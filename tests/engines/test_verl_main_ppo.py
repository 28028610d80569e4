"""verl's `main_ppo` on a CPU: PPO with a critic for three steps, the check on in each, then resumed for a fourth.

Ray starts its own processes here, a minute or more on two cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.engines.conftest import PROMPTS, Made

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(find_spec("verl") is None, reason="needs verl 0.9: `make engines` installs it and runs this"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "verl"
ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "cpu_platform",
    "PYTHONPATH": os.pathsep.join([str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}


def train(made: Made, folder: Path, steps: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `surefoot verl` with the example's configuration on the tiny policy and source."""
    settings = {
        "surefoot.source": made.source_path,
        "surefoot.anchor_file": made.anchors,
        "surefoot.target_kl": 0.5,
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "train.parquet",
        "data.train_batch_size": 4,
        "data.max_prompt_length": 8,
        "data.max_response_length": 6,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.actor.optim.lr": 1e-2,
        "actor_rollout_ref.model.path": made.policy,
        "critic.model.path": made.policy,
        "critic.ppo_mini_batch_size": 4,
        "critic.ppo_micro_batch_size_per_gpu": 8,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 9,
        "trainer.default_local_dir": folder / "verl",
    }
    command = [
        sys.executable,
        "-m",
        "surefoot.cli.main",
        "verl",
        "--config-path",
        str(EXAMPLE),
        "--config-name",
        "cpu",
    ]
    overrides = [f"++{name}={value}" for name, value in settings.items()]
    return subprocess.run(
        [*command, *overrides, *words],
        cwd=folder,
        env=os.environ | ENVIRONMENT | {"PWD": str(folder)},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def logged(run: subprocess.CompletedProcess[str], name: str) -> list[float]:
    """Values of a figure in verl's log, one for each step."""
    return [float(value) for value in re.findall(rf"{re.escape(name)}:(?:np\.float64\()?([-+.\deE]+|nan)", run.stdout)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8")
    words = [str(EXAMPLE / "prompts.py"), str(tmp_path / "prompts.jsonl"), str(tmp_path / "train.parquet")]
    subprocess.run([sys.executable, *words], check=True)
    return tmp_path


def test_three_steps_then_resumed(made: Made, folder: Path) -> None:
    first = train(made, folder, 3)
    assert first.returncode == 0, first.stdout[-4000:] + first.stderr[-4000:]
    errors = logged(first, "surefoot/check/max_error")
    assert len(errors) == 3
    assert max(errors) <= 1e-5
    assert len(set(logged(first, "critic/vf_loss"))) == 3
    assert logged(first, "surefoot/sequence_kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(logged(first, "surefoot/sequence_kl")[-1]) > 1e-3
    means = logged(first, "surefoot/weight/mean")
    assert means[0] == pytest.approx(1.0, abs=0.2)  # over the reference policy's own completions; bounds move it
    state = json.loads((folder / "verl" / "global_step_3" / "surefoot.json").read_text())
    assert logged(first, "surefoot/beta")[0] == 0.1
    known = logged(first, "surefoot/reference_variance")
    assert known == pytest.approx([state["reference_variance"]] * 3)

    second = train(made, folder, 4)
    assert second.returncode == 0, second.stdout[-4000:] + second.stderr[-4000:]
    assert logged(second, "surefoot/beta") == pytest.approx([state["beta"]])
    assert logged(second, "surefoot/reference_variance") == pytest.approx(known[:1])
    assert len(logged(second, "surefoot/check/max_error")) == 1

    third = train(made, folder, 5, "surefoot.preset=mean")
    assert third.returncode != 0
    assert "surefoot.preset: variance_aware, and this run has mean" in third.stdout + third.stderr


def test_verls_own_trainer_stops_at_the_start(made: Made, folder: Path) -> None:
    run = train(made, folder, 1, "trainer.v1.trainer_mode=sync")
    assert run.returncode != 0
    assert "verl's own trainer, which ignores weights" in run.stdout + run.stderr
