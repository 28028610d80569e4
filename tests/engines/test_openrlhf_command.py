"""`surefoot openrlhf`: what it refuses before Ray starts, and a run of OpenRLHF's own `train_ppo_ray` with it."""

from __future__ import annotations

import ast
import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli.main import main
from tests.engines.conftest import PROMPTS, Made

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        find_spec("openrlhf") is None, reason="needs OpenRLHF 0.11: `make engines-openrlhf` installs it and runs this"
    ),
    pytest.mark.usefixtures("openrlhf_stand_ins"),
]


class Started(Exception):
    """Ray would have been started."""


@pytest.fixture
def until_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a command where it would start Ray; what it puts into OpenRLHF is taken out again."""
    import ray
    from openrlhf.trainer import ppo_trainer
    from openrlhf.utils import config

    def start(*arguments: Any, **named: Any) -> None:
        raise Started

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(config, "hierarchize", config.hierarchize)
    monkeypatch.setattr(ppo_trainer, "PPOTrainer", ppo_trainer.PPOTrainer)
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def plain_server() -> Iterator[str]:
    """A reward server that gives no variances."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps({"rewards": [1.0], "scores": [1.0]}).encode())

        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://x:secret@127.0.0.1:{server.server_address[1]}/get_reward"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algo.kl.use_loss"], "--algo.kl.use_loss must be left out"),
        (["--reward.clip_range", "-1", "1"], "--reward.clip_range must be left out, got [-1.0, 1.0]"),
        (["--algo.advantage.estimator", "group_norm", "--rollout.n_samples_per_prompt", "2"], "use rloo"),
        (["--surefoot.target_kl", "-1"], "target_kl"),
    ],
)
def test_refused_before_ray(until_ray: None, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["openrlhf", "--reward.remote_url", "http://127.0.0.1:1/get_reward", *words]) == 1
    assert said in capsys.readouterr().err


def test_a_server_without_variances_is_refused(
    until_ray: None, capsys: pytest.CaptureFixture[str], plain_server: str
) -> None:
    assert main(["openrlhf", "--reward.remote_url", plain_server]) == 1
    said = capsys.readouterr().err
    assert "gives no extra_logs.variance" in said
    assert "secret" not in said


def test_a_server_that_is_away_is_refused(until_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openrlhf", "--reward.remote_url", "http://127.0.0.1:1/get_reward"]) == 1
    assert "start `surefoot serve` first" in capsys.readouterr().err


def test_right_arguments_get_to_ray_with_our_trainer(until_ray: None, reward_server: Any) -> None:
    import ray
    from openrlhf.trainer import ppo_trainer

    from surefoot.engines.openrlhf import SurefootTrainer

    with pytest.raises(Started):
        main(["openrlhf", "--actor.model_name_or_path", "x", "--reward.remote_url", f"{reward_server.url}/get_reward"])
    assert ray.init is not None
    assert ppo_trainer.PPOTrainer.__ray_metadata__.modified_class is SurefootTrainer


def test_openrlhfs_own_command_with_weights(
    made: Made, reward_server: Any, openrlhf_stand_ins: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS), encoding="utf-8")
    settings = {
        "actor.model_name_or_path": made.policy,
        "reward.remote_url": f"{reward_server.url}/get_reward",
        "data.prompt_dataset": prompts,
        "data.input_key": "prompt",
        "data.max_len": 32,
        "rollout.max_new_tokens": 6,
        "rollout.batch_size": 3,
        "rollout.n_samples_per_prompt": 2,
        "rollout.micro_batch_size": 3,
        "train.batch_size": 6,
        "train.num_episodes": 2,
        "ckpt.path": tmp_path / "checkpoints",
        "ckpt.save_steps": 1,
        "vllm.num_engines": 1,
        "algo.kl.init_coef": 0.1,
        "surefoot.target_kl": 0.5,
    } | {f"{name}.num_gpus_per_node": 1 for name in ("actor", "ref", "critic")}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    paths = [str(openrlhf_stand_ins), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.engines.openrlhf_cpu", *words],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0, said[-6000:]
    logged = [
        ast.literal_eval(line[line.index("{'surefoot_weight'") :])
        for line in said.splitlines()
        if "{'surefoot_weight'" in line
    ]
    assert len(logged) == 8  # two micro-batches in each of four steps
    assert max(error for row in logged for error in row["surefoot_max_error"]) <= 1e-6
    assert len({weight for row in logged for weight in row["surefoot_weight"]}) > 6
    first = [weight for row in logged[:2] for weight in row["surefoot_weight"]]
    assert sum(first) / len(first) == pytest.approx(1.0, abs=0.2)  # bounds move it
    assert all(abs(kl) < 1e-5 for row in logged[:2] for kl in row["surefoot_kl"])
    assert any(abs(kl) > 0.1 for row in logged[2:] for kl in row["surefoot_kl"])
    betas = [row["surefoot_beta"][0] for row in logged]
    assert betas[0] == betas[1] == pytest.approx(0.1)
    assert betas[-1] != betas[0]


def test_the_examples_options_are_accepted(until_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import surefoot.engines.openrlhf as ours

    asked: list[str] = []
    monkeypatch.setattr(ours, "check_server", asked.append)
    lines = (Path(__file__).parents[2] / "examples" / "openrlhf" / "qwen.sh").read_text(encoding="utf-8")
    program, *words = shlex.split(lines[lines.index("surefoot openrlhf") :].replace("\\\n", " "))
    assert program == "surefoot"
    with pytest.raises(Started):
        main(words)
    assert asked == ["http://127.0.0.1:8000/get_reward"]
