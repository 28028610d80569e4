"""Settings of anchors: what draws none, what is refused, and what is said before training."""

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import ModelConfig

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.run_online import OnlineScriptArguments, run_policy_gradient
from tests.training.test_anchors_in_trainers import KINDS, NEW, trainer_of
from tests.training.test_prompt_anchors import rows_of
from tests.training.test_rloo_trainer import PROMPTS, common, panel


@pytest.mark.parametrize(
    ("anchor", "expected"), [("dataset", "dataset"), ("calibration", "calibration"), ("group", "group")]
)
def test_other_kinds_draw_nothing(policy_path: Path, tmp_path: Path, anchor: str, expected: str) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS, "chosen": ["cat dog"] * 24, "rejected": ["dog dog a"] * 24})
    trainer = trainer_of("rloo", policy_path, tmp_path, data=data, anchor=anchor, max_steps=2)

    def refuse(*_: Any) -> Any:
        raise AssertionError

    trainer._sample_reference = refuse
    trainer.train()
    assert set(trainer.last_shaped.estimate.anchor_kinds) == {expected}
    if anchor == "dataset":
        row = torch.tensor(panel([], ["cat dog", "dog dog a"])).mean(dim=0)
        torch.testing.assert_close(trainer.anchors.of(data.select([0])).rows[0], row)
    else:
        assert trainer.anchors is None


def test_a_run_of_the_command_reads_the_data_s_completions_and_records_the_share(
    policy_path: Path, tmp_path: Path
) -> None:
    table = {"prompt": PROMPTS, "chosen": ["cat dog"] * 24, "rejected": ["dog dog a"] * 24, "other": [1] * 24}
    Dataset.from_dict(table).to_parquet(tmp_path / "pairs.parquet")
    script = OnlineScriptArguments(dataset_name=str(tmp_path / "pairs.parquet"), reward_source="given")
    args = VarianceAwareRLOOConfig(**common(tmp_path / "run", anchor="dataset", max_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other warnings are those of the trainers
        record = run_policy_gradient(
            "rloo", script, args, ModelConfig(str(policy_path), dtype="float32"), {"a": 1}, FunctionMembers(panel, 5)
        )
    assert record["metrics"]["anchors"]["prompts"] == 6
    assert 0 < record["metrics"]["anchors"]["share_of_time"] < 1


def test_what_needs_no_anchor_draws_none(policy_path: Path, tmp_path: Path) -> None:
    for preset in ("vanilla", "mean"):
        trainer = trainer_of("rloo", policy_path, tmp_path / preset, preset=preset, max_steps=1)
        assert trainer.anchors is None
        trainer.train()
        assert not any("anchors/prompts" in row for row in trainer.state.log_history)
    given = FunctionReward(lambda p, c: ([float(len(t)) for t in c], [1.0 + t.count("dog") for t in c]))
    assert trainer_of("rloo", policy_path, tmp_path / "given", reward=given).anchors is None


def test_prompts_that_are_never_scored_fall_back_on_the_calibration(policy_path: Path, tmp_path: Path) -> None:
    """What was scored nowhere among a prompt's reference completions is centred by the calibration set, and trains."""
    drawing = [False]

    def shy(prompts: Any, completions: Any) -> list[list[float]]:
        rows = panel(prompts, completions)
        silent = [drawing[0] and "dog" in prompt for prompt in prompts]
        return [[math.nan] * 5 if none else row for none, row in zip(silent, rows, strict=True)]

    trainer = trainer_of("rloo", policy_path, tmp_path, reward=FunctionMembers(shy, 5), max_steps=6)
    inner = trainer.anchors._gathered

    def gathered(*given: Any) -> Any:
        drawing[0] = True
        try:
            return inner(*given)
        finally:
            drawing[0] = False

    trainer.anchors._gathered = gathered
    kinds: set[Any] = set()
    shape = trainer._shape_batch

    def watch(*given: Any) -> Any:
        shaped, scores, anchors = shape(*given)
        for row, kind in zip(given[0], shaped.estimate.anchor_kinds, strict=True):
            kinds.add(("dog" in row["prompt"], kind))
        assert not bool(shaped.weight.isnan().any())
        return shaped, scores, anchors

    trainer._shape_batch = watch
    trainer.train()
    assert kinds == {(True, "calibration"), (False, "reference")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", ["use_vllm", "use_transformers_continuous_batching"])
def test_other_engines_hold_the_policy_so_the_reference_is_sampled_by_generate(
    kind: str, flag: str, policy_path: Path, tmp_path: Path
) -> None:
    """As if TRL sampled by vLLM: no settings of `generate` are there, and an engine that must not be asked."""
    trainer = trainer_of(kind, policy_path, tmp_path, generation_kwargs={"min_new_tokens": 2, "stop": ["."]}
                         if flag == "use_vllm" else None)  # fmt: skip
    plain = trainer_of(kind, policy_path, tmp_path / "plain", generation_kwargs={"min_new_tokens": 2}
                       if flag == "use_vllm" else None)  # fmt: skip
    setattr(trainer, flag, True)
    if flag == "use_vllm":
        del trainer.generation_config, trainer.generation_kwargs
        trainer._last_loaded_step = -1
    prompts = [prompt for prompt in NEW for _ in range(3)]
    assert trainer._sample_reference(prompts, 5) == plain._sample_reference(prompts, 5)
    assert getattr(trainer, flag) is True


def test_settings_under_which_there_is_no_fixed_reference(policy_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sync_ref_model moves the reference.*anchor_file"):
        trainer_of("rloo", policy_path, tmp_path, sync_ref_model=True)
    trainer = trainer_of("grpo", policy_path, tmp_path)
    for name, value, match in (("rollout_func", print, "samples the policy"), ("tools", [print], "call your tools")):
        setattr(trainer, name, value)
        with pytest.raises(ConfigError, match=match):
            trainer.anchors.of(rows_of(f"new for {name}"))
        setattr(trainer, name, None)
    trainer.environment_factories = {None: print}
    with pytest.raises(ConfigError, match="an environment changes the prompts"):
        trainer._new_anchors()


@pytest.mark.parametrize("config", [VarianceAwareRLOOConfig, VarianceAwareGRPOConfig])
def test_settings_that_say_nothing(config: Any, tmp_path: Path) -> None:
    for changes, match in (
        ({"anchor": "policy"}, "anchor must be one of reference, dataset, calibration, group, got 'policy'"),
        ({"anchor_completions": 0}, "at least 1"),
        ({"anchor_file": "x", "anchor": "group"}, "leave one of them out"),
    ):
        with pytest.raises(ConfigError, match=match):
            config(**common(tmp_path, **changes))


def test_the_share_of_the_time_is_logged(policy_path: Path, tmp_path: Path) -> None:
    trainer = trainer_of("rloo", policy_path, tmp_path, max_steps=8, calibration_prompts=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "anchors/share_of_time" in row]
    assert len(rows) == 8
    assert all(0 < row["anchors/share_of_time"] < 1 for row in rows)
    assert rows[-1]["anchors/prompts"] == len(trainer.anchors.store) == 6


def test_a_noisy_variance_is_warned_of_before_training(policy_path: Path, tmp_path: Path) -> None:
    """Members that are hash noise: halves of them know nothing of each other's variance."""

    def noise(prompts: Any, completions: Any) -> list[list[float]]:
        def one(text: str, k: int) -> float:
            return int(hashlib.sha256(f"{k} {text}".encode()).hexdigest()[:6], 16) / 16**6

        return [[one(text, k) for k in range(6)] for text in completions]

    trainer = trainer_of("rloo", policy_path, tmp_path, reward=FunctionMembers(noise, 6), max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.calibrate_on_reference()
    assert any("weights made of it are mostly noise" in str(one.message) for one in caught)
    assert trainer.source.calibration.notes["reliability"] < 0.6
