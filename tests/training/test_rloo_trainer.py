"""The trainer on a real (tiny) policy: TRL's own trajectory if nothing is weighed, the objective's if it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PrinterCallback,
)
from trl import RLOOConfig, RLOOTrainer

from surefoot.errors import ConfigError, ModelError, VarianceError
from surefoot.maths.advantages import leave_one_out
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.source import MemberSource
from surefoot.training.bridge import STATE
from surefoot.training.reward_funcs import split_reward_funcs
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.types import Anchors

PROMPTS = ["the cat", "a dog", "red and", "the blue dog", "green", "a cat and"] * 4


def members(prompts: Any, completions: Any) -> list[list[float]]:
    """Three members that like "cat", and differ in what they think of "dog" and of length."""
    rows = []
    for text in completions:
        words = text.split()
        cat, dog = words.count("cat"), words.count("dog")
        rows.append([cat + 0.1 * len(words), cat + 2.0 * dog, cat - 2.0 * dog - 0.1 * len(words)])
    return rows


def panel(prompts: Any, completions: Any) -> list[list[float]]:
    """Five members: `members`, and two more that differ about "dog". Variances of three are too noisy to differ."""
    dogs = [text.split().count("dog") for text in completions]
    return [[*row, row[0] + dog, row[0] - dog] for row, dog in zip(members(prompts, completions), dogs, strict=True)]


def first_member(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [row[0] for row in members(prompts, completions)]


def common(output: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "beta": 0.1,
        "bf16": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return settings | changes


def ours(policy: Any, output: Path, reward: Any = None, **changes: Any) -> VarianceAwareRLOOTrainer:
    trainer = VarianceAwareRLOOTrainer(
        policy if not isinstance(policy, Path) else str(policy),
        FunctionMembers(panel, 5) if reward is None else reward,
        VarianceAwareRLOOConfig(**common(output, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def stock(policy: Path, output: Path, **changes: Any) -> RLOOTrainer:
    trainer = RLOOTrainer(
        str(policy),
        first_member,
        RLOOConfig(**common(output, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@torch.no_grad()
def difference(first: Any, second: Any) -> float:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@torch.no_grad()
def moved(trainer: Any, policy: Path) -> float:
    start = AutoModelForCausalLM.from_pretrained(policy)
    return max(float((a - b).abs().max()) for a, b in zip(trainer.model.parameters(), start.parameters(), strict=True))


def test_weighting_off_is_the_stock_trajectory(policy_path: Path, tmp_path: Path) -> None:
    theirs = stock(policy_path, tmp_path / "stock")
    theirs.train()
    mine = ours(policy_path, tmp_path / "ours", preset="vanilla")
    mine.train()
    assert moved(theirs, policy_path) > 1e-3  # something was learnt, so agreement means something
    assert difference(theirs, mine) <= 1e-6


def test_weights_of_one_are_the_stock_trajectory(policy_path: Path, tmp_path: Path) -> None:
    theirs = stock(policy_path, tmp_path / "stock")
    theirs.train()
    mine = ours(policy_path, tmp_path / "ours", preset="variance_aware_one", weight_floor=1.0, weight_ceiling=1.0)
    mine.train()
    assert difference(theirs, mine) <= 1e-6


def test_weighting_on_is_another_trajectory(policy_path: Path, tmp_path: Path) -> None:
    plain = ours(policy_path, tmp_path / "plain", preset="mean", beta=1.0)
    plain.train()
    weighted = ours(policy_path, tmp_path / "weighted", preset="variance_aware", beta=1.0)
    weighted.train()
    assert difference(plain, weighted) > 1e-4


@torch.no_grad()
def sequence_log_probability(model: Any, prompt: torch.Tensor, completion: torch.Tensor) -> float:
    """By a forward pass of one unpadded sequence: independent of the trainer's batching, padding and fused head."""
    ids = torch.cat([prompt, completion])[None]
    logs = model(ids).logits[0].double().log_softmax(-1)
    start = len(prompt)
    return float(sum(logs[start + i - 1, token] for i, token in enumerate(completion.tolist())))


def real(batch: dict[str, torch.Tensor], part: str, row: int) -> torch.Tensor:
    """The row's own tokens, without padding."""
    return batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()]


@pytest.mark.parametrize("given", ["model", "source", "loaded"])
def test_a_reward_that_cannot_read_messages_is_refused_before_the_policy_is_loaded(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(policy_path).save_pretrained(tmp_path / "model")
    loaded = IndependentMembers.from_models([tmp_path / "model"])
    loaded.save(tmp_path / "source")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the policy was loaded"))
    if given != "loaded":
        kind = LlamaForSequenceClassification
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("the reward model was loaded"))
    with pytest.raises(ModelError, match="has no chat template"):
        VarianceAwareRLOOTrainer(
            str(policy_path),
            loaded if given == "loaded" else str(tmp_path / given),
            VarianceAwareRLOOConfig(**common(tmp_path, preset="vanilla")),
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "cat"}]] * 4}),
        )


@pytest.mark.parametrize("preset", ["variance_aware", "literal", "lcb"])
def test_advantages_recomputed_from_the_tokens(policy_path: Path, tmp_path: Path, preset: str) -> None:
    """Each advantage, after TRL's shuffling and splitting, is the objective's for that row's own tokens."""
    trainer = ours(
        policy_path, tmp_path, preset=preset, beta=0.5, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        generation_batch_size=16, max_steps=3,
    )  # fmt: skip
    trainer.train()
    policy = AutoModelForCausalLM.from_pretrained(policy_path)
    policy.load_state_dict({k: v for k, v in trainer.model.state_dict().items() if k in policy.state_dict()})
    reference = AutoModelForCausalLM.from_pretrained(policy_path)
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    trainer.model.train()
    trainer._step, trainer._buffered_inputs = 0, None
    inputs = [{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(4)]
    batches = []
    for step in range(4):
        trainer._step = step
        batches.append(trainer._prepare_inputs(inputs))
    rows = [
        (real(batch, "prompt", i), real(batch, "completion", i), batch["advantages"][i])
        for batch in batches
        for i in range(4)
    ]
    assert len(rows) == 16
    by_prompt: dict[str, list[Any]] = {}
    for prompt, completion, advantage in rows:
        ratio = sequence_log_probability(policy, prompt, completion) - sequence_log_probability(
            reference, prompt, completion
        )
        text = tokenizer.decode(completion, skip_special_tokens=True)
        by_prompt.setdefault(tokenizer.decode(prompt), []).append((panel([""], [text])[0], ratio, float(advantage)))
    assert len(by_prompt) == 4
    assert trainer.anchors is not None
    for prompt, group in by_prompt.items():
        scores = torch.tensor([row[0] for row in group], dtype=torch.float64)
        ratios = torch.tensor([row[1] for row in group], dtype=torch.float64)
        estimate = trainer.source.estimate(scores, trainer.anchors.store.of([prompt] * 4))
        weight = (estimate.variance / trainer.source.calibration.reference_variance).clamp(0.1, 10.0)
        if preset == "lcb":
            total = estimate.mean - estimate.variance.sqrt() - 0.5 * ratios
        else:
            total = estimate.mean - 0.5 * weight * (ratios + (1.0 if preset == "literal" else 0.0))
        expected = leave_one_out(total, 4)
        torch.testing.assert_close(
            torch.tensor([row[2] for row in group], dtype=torch.float64), expected, rtol=1e-4, atol=1e-5
        )


def test_a_penalty_that_does_not_enter_is_noticed(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ours(policy_path, tmp_path, beta=0.5)
    trainer.calibrate_on_reference()
    trainer.reward_weights[1] = 0.0  # as if a version of TRL dropped the surcharge column
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.1)  # away from the reference, so that there is a penalty to lose
    with pytest.raises(RuntimeError, match="advantages differ from the objective's"):
        trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)])


def test_the_budget_moves_beta_and_is_logged(policy_path: Path, tmp_path: Path) -> None:
    trainer = ours(policy_path, tmp_path, target_kl=5.0, beta=1.0)
    trainer.train()
    betas = [row["beta"] for row in trainer.state.log_history if "beta" in row]
    assert betas[0] == 1.0
    assert betas[-1] < 0.8
    row = trainer.state.log_history[0]
    expected = {"sequence_kl", "reward", "reward/variance", "reward/penalty", "weight/mean", "weight/q25", "unscored",
                "weight/at_floor", "weight/at_ceiling", "weight/effective_sample_size", "reward/member_2",
                "weight/effect", "reward/penalty_share"}  # fmt: skip
    assert expected <= set(row)
    assert row["weight/effective_sample_size"] <= 1.0


def test_unscored_completions_do_not_move_the_policy(policy_path: Path, tmp_path: Path) -> None:
    """All completions unscored: no learning signal at all, not rewards of 0 less a penalty."""
    nothing = FunctionMembers(lambda p, c: [[float("nan")] * 2 for _ in c], 2)
    nothing.calibrate(torch.randn(8, 2))
    trainer = ours(policy_path, tmp_path, reward=nothing, preset="mean", max_steps=2)
    trainer.train()
    assert moved(trainer, policy_path) == 0.0
    assert trainer.state.log_history[0]["unscored"] == 1.0


def test_monitors_are_logged_and_not_optimised(policy_path: Path, tmp_path: Path) -> None:
    plain = ours(policy_path, tmp_path / "a", preset="mean", max_steps=3)
    plain.train()
    watched = VarianceAwareRLOOTrainer(
        str(policy_path), FunctionMembers(panel, 5),
        VarianceAwareRLOOConfig(**common(tmp_path / "b", preset="mean", max_steps=3)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        monitors={"gold": lambda p, c: [float(text.count("cat")) for text in c]},
    )  # fmt: skip
    watched.remove_callback(PrinterCallback)
    watched.train()
    assert difference(plain, watched) == 0.0
    assert "monitor/gold" in watched.state.log_history[0]


def test_the_parts_of_a_source_s_variance_are_logged(policy_path: Path, tmp_path: Path) -> None:
    """Of the batch's scores, about the same anchors as the variance."""

    class InParts(FunctionMembers):
        def variance_parts(self, scores: torch.Tensor, anchors: Anchors | None) -> dict[str, float]:
            variance = self.estimate(scores, anchors).variance
            return {"half": float(variance.nanmean()) / 2}

    trainer = VarianceAwareRLOOTrainer(
        str(policy_path), InParts(panel, 5), VarianceAwareRLOOConfig(**common(tmp_path, max_steps=2)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for line in trainer.state.log_history[:2]:
        assert line["reward/variance_half"] == pytest.approx(line["reward/variance"] / 2)
        assert line["reward/variance"] > 0


def test_resuming_continues_the_same_trajectory(policy_path: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_kl": 1.0, "save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole = ours(policy_path, tmp_path / "whole", **settings)
    whole.train()
    resumed = ours(policy_path, tmp_path / "resumed", **settings)
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / STATE).read_text())
    assert state["controller"]["target"] == 1.0
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert difference(whole, resumed) <= 1e-6
    assert resumed.beta == pytest.approx(whole.beta, rel=1e-9)


def test_a_model_in_memory_is_saved_as_its_own_reference(policy_path: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy_path)
    with torch.no_grad():
        model.lm_head.weight.add_(0.5 * torch.randn_like(model.lm_head.weight))
    model.config._name_or_path = ""
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    trainer = VarianceAwareRLOOTrainer(
        model, FunctionMembers(panel, 5), VarianceAwareRLOOConfig(**common(tmp_path, max_steps=1)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}), processing_class=tokenizer,
    )  # fmt: skip
    torch.testing.assert_close(trainer.ref_model.lm_head.weight, model.lm_head.weight)


class TestGuards:
    def test_settings_that_undo_the_penalty(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="normalize_advantages"):
            VarianceAwareRLOOConfig(**common(tmp_path, normalize_advantages=True))
        with pytest.raises(ConfigError, match="reward_clip_range"):
            VarianceAwareRLOOConfig(**common(tmp_path, reward_clip_range=(-1, 1)))
        with pytest.raises(ConfigError, match="beta is 0"):
            VarianceAwareRLOOConfig(**common(tmp_path, beta=0.0))
        with pytest.raises(ConfigError, match="did you mean 'variance_aware'"):
            VarianceAwareRLOOConfig(**common(tmp_path, preset="varianceaware"))

    def test_one_member_has_no_variance(self, policy_path: Path, tmp_path: Path) -> None:
        single = FunctionMembers(lambda p, c: [[float(len(text))] for text in c], 1)
        with pytest.raises(VarianceError, match="has one member"):
            ours(policy_path, tmp_path, reward=single)

    def test_no_source(self, policy_path: Path, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="one RewardSource, or names of reward models"):
            ours(policy_path, tmp_path, reward=[3])

    def test_reference_directory_without_weights(self, policy_path: Path, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(policy_path)
        empty = tmp_path / "empty"
        empty.mkdir()
        model.config._name_or_path = str(empty)
        with pytest.raises(ModelError, match=r"holds no \*\.safetensors weights"):
            ours(model, tmp_path / "run")


def test_no_kl_at_all_is_the_stock_trajectory(policy_path: Path, tmp_path: Path) -> None:
    theirs = stock(policy_path, tmp_path / "stock", beta=0.0)
    theirs.train()
    mine = ours(policy_path, tmp_path / "ours", preset="vanilla", beta=0.0)
    mine.train()
    assert difference(theirs, mine) <= 1e-6


def test_plain_functions_alone_are_trls_sum(policy_path: Path, tmp_path: Path) -> None:
    def length(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [len(text) / 16 for text in completions]

    theirs = RLOOTrainer(
        str(policy_path), [first_member, length], RLOOConfig(**common(tmp_path / "a", reward_weights=[1.0, 0.5])),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )  # fmt: skip
    theirs.train()
    mine = ours(policy_path, tmp_path / "b", [first_member, length], preset="vanilla", reward_weights=[1.0, 0.5])
    mine.train()
    assert moved(theirs, policy_path) > 1e-3
    assert difference(theirs, mine) <= 1e-6
    with pytest.raises(VarianceError, match="one function, first_member, has none"):
        ours(policy_path, tmp_path / "c", [first_member], preset="variance_aware")


def test_names_are_members_and_a_directory_is_a_source(policy_path: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    names = []
    for k in range(2):
        torch.manual_seed(k)
        model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
        model.save_pretrained(tmp_path / str(k))
        AutoTokenizer.from_pretrained(policy_path).save_pretrained(tmp_path / str(k))
        names.append(str(tmp_path / str(k)))
    source, rest = split_reward_funcs([*names, first_member])
    assert isinstance(source, MemberSource)
    assert (source.num_members, rest) == (2, [first_member])
    source.save(tmp_path / "source")
    again, rest = split_reward_funcs(str(tmp_path / "source"))
    torch.testing.assert_close(again.score(["the "], ["cat"]), source.score(["the "], ["cat"]))
    trainer = ours(policy_path, tmp_path / "run", names, max_steps=1)
    assert trainer.source.num_members == 2  # type: ignore[attr-defined]
    for bad in ([], [source, source], [source, names[0]], [3]):
        with pytest.raises(TypeError, match="one RewardSource"):
            split_reward_funcs(bad)


def test_the_model_card_says_what_was_optimised(policy_path: Path, tmp_path: Path) -> None:
    trainer = ours(policy_path, tmp_path / "run", target_kl=0.5, max_steps=2)
    trainer.train()
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`function`, 5 members" in card
    assert f'model="{tmp_path / "run"}"' in card  # TRL's example names a model that there is
    assert "KL weighted by the variance (generalized)" in card
    assert "0.5 nats per sequence" in card
    assert "mean variance on the reference policy" in card
