"""How a batch is cut, whether an adapter is there, and how prompts are written must not change what is learnt."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, PrinterCallback

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.prompt_anchors import PromptAnchors
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from tests.training.test_rloo_trainer import PROMPTS, common, difference, moved, panel

KINDS = {
    "rloo": (VarianceAwareRLOOTrainer, VarianceAwareRLOOConfig),
    "grpo": (VarianceAwareGRPOTrainer, VarianceAwareGRPOConfig),
}


def make(kind: str, policy: Path, output: Path, prompts: Any = None, keywords: Any = None, **changes: Any) -> Any:
    trainer_class, config_class = KINDS[kind]

    def texts(given: Any, completions: Any) -> list[list[float]]:
        plain = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return panel(given, plain)

    trainer = trainer_class(
        str(policy), FunctionMembers(texts, 5), config_class(**common(output, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS if prompts is None else prompts}), **(keywords or {}),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing(kind: str, policy_path: Path, tmp_path: Path) -> None:
    """One step on 8 completions, or on 4 and 4: AdamW's first steps, to float32 rounding."""
    whole = make(kind, policy_path, tmp_path / "a", beta=0.5, max_steps=3)
    whole.train()
    halves = make(
        kind, policy_path, tmp_path / "b", beta=0.5, max_steps=3, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, shuffle_dataset=True,
    )  # fmt: skip
    halves.train()
    assert moved(whole, policy_path) > 1e-3
    assert difference(whole, halves) <= 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_at_zero_is_no_adapter(kind: str, policy_path: Path, tmp_path: Path) -> None:
    """PEFT's reference is the base with the adapter off; at the start both are one policy, sampled alike."""
    rows = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)]
    found = []
    for name, keywords in (("off", None), ("on", {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2)})):
        trainer = make(kind, policy_path, tmp_path / name, keywords=keywords, beta=0.5)
        trainer.calibrate_on_reference()
        trainer.model.train()
        torch.manual_seed(7)
        batch = trainer._generate_and_score_completions(rows)
        found.append((batch["completion_ids"], batch["advantages"], trainer.last_shaped.log_ratio))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    assert float(found[0][1].abs().max()) > 0.1
    assert float(found[1][2].abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_moves_away_from_its_own_base(kind: str, policy_path: Path, tmp_path: Path) -> None:
    keywords = {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2)}
    trainer = make(kind, policy_path, tmp_path, keywords=keywords, beta=0.05, learning_rate=3e-2)
    trainer.train()
    assert float(trainer.last_shaped.log_ratio.abs().max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_messages_that_render_alike_train_alike(
    kind: str, policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptAnchors, "_seed_of", lambda self, prompts: len(self.store))  # else of their content
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    plain = make(kind, policy_path, tmp_path / "a", beta=0.5, max_steps=3)
    plain.train()
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    chat = make(kind, policy_path, tmp_path / "b", chats, {"processing_class": tokenizer}, beta=0.5, max_steps=3)
    chat.train()
    assert difference(plain, chat) <= 1e-6
    expected = plain.anchors.store.of(PROMPTS[:6]).rows
    torch.testing.assert_close(chat.anchors.store.of(chats[:6]).rows, expected, rtol=0, atol=0)
    assert float(expected.std(dim=0).max()) > 0.1


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_policy(policy_path: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command again ends with the weights of a run that was left alone."""
    data = tmp_path / "pairs.parquet"
    rows = {
        "prompt": [f"{p} {i}" for i, p in enumerate(PROMPTS)],
        "chosen": [" cat runs"] * 24,
        "rejected": [" dog"] * 24,
    }
    Dataset.from_dict(rows).to_parquet(data)
    surefoot = [sys.executable, "-m", "surefoot.cli.main"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def words(command: str, **settings: Any) -> list[str]:
        return [*surefoot, command, *(w for key, value in settings.items() for w in (f"--{key}", str(value)))]

    reward = {"model_name_or_path": policy_path, "dataset_name": data, "output_dir": tmp_path / "reward"}
    run = words("reward", kind="heads", **reward, held_out=0.4, epochs=3, layer=0, max_length=16, bootstrap="poisson")
    subprocess.run(run, check=True, env=environment, capture_output=True)

    def align(output: Path) -> list[str]:
        return words(
            "grpo", model_name_or_path=policy_path, dataset_name=data, reward_source=tmp_path / "reward" / "source",
            output_dir=output, per_device_train_batch_size=8, num_generations=4, max_completion_length=5, max_steps=40,
            save_steps=5, beta=0.3, target_kl=1.0, learning_rate=1e-3, calibration_prompts=3, report_to="none",
            gradient_checkpointing="false", use_cpu="true", logging_steps=1, save_total_limit=2,
        )  # fmt: skip

    subprocess.run(align(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    killed = subprocess.Popen(
        align(tmp_path / "cut"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("checkpoint-1*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "cut" / "record.json").exists()
    subprocess.run(align(tmp_path / "cut"), check=True, env=environment, capture_output=True)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) <= 1e-6
    logs = [json.loads((tmp_path / name / "record.json").read_text())["metrics"] for name in ("whole", "cut")]
    assert logs[0]["end"]["beta"] == pytest.approx(logs[1]["end"]["beta"], rel=1e-6)
    assert logs[0]["calibration"] == logs[1]["calibration"]


@pytest.mark.parametrize(("weighting", "warned"), [("unlikely", True), ("nothing", True), ("possible", False)])
def test_a_verdict_against_weighting_is_warned_of(
    policy_path: Path, tmp_path: Path, weighting: str, warned: bool
) -> None:
    trainer = make("rloo", policy_path, tmp_path / "a", max_steps=1)
    line = "Weighting by this variance is what it is."
    trainer.source.diagnosis = {"verdict": {"weighting": weighting, "lines": ["It ranks.", line]}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(one.message) for one in caught if "speaks against" in str(one.message)]
    assert len(said) == int(warned)
    assert all(line in text and "preset='mean'" in text for text in said)
