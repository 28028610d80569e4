"""GRPO: TRL's own trajectory if nothing is weighed; with weighting, the penalty in the reward and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from surefoot.errors import ConfigError
from surefoot.maths.advantages import group_relative
from surefoot.maths.shrinkage import group_reliability
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.token_recorder import TokenRecorder
from tests.training.test_rloo_trainer import PROMPTS, common, difference, moved, real, sequence_log_probability


def members(prompts: Any, completions: Any) -> list[list[float]]:
    """As RLOO's test members, in eighths: TRL divides by a group's spread + 1e-4, which blows up rounding errors of
    groups whose rewards are equal, its own among them."""
    rows = []
    for text in completions:
        words = text.split()
        cat, dog = words.count("cat"), words.count("dog")
        length = len(words) / 8
        rows.append([cat + length, cat + 2.0 * dog, cat - 2.0 * dog - length, cat + dog + length, cat - dog])
    return rows


def first_member(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [row[0] for row in members(prompts, completions)]


def ours(policy: Path, output: Path, **changes: Any) -> VarianceAwareGRPOTrainer:
    trainer = VarianceAwareGRPOTrainer(
        str(policy),
        FunctionMembers(members, 5),
        VarianceAwareGRPOConfig(**common(output, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def stock(policy: Path, output: Path, **changes: Any) -> GRPOTrainer:
    trainer = GRPOTrainer(
        str(policy),
        first_member,
        GRPOConfig(**common(output, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize("changes", [{}, {"beta": 0.0}, {"scale_rewards": "none", "num_iterations": 2}])
def test_weighting_off_is_the_stock_trajectory(policy_path: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = stock(policy_path, tmp_path / "stock", **changes)
    theirs.train()
    mine = ours(policy_path, tmp_path / "ours", preset="vanilla", **changes)
    mine.train()
    assert moved(theirs, policy_path) > 1e-3  # something was learnt, so agreement means something
    assert difference(theirs, mine) <= 1e-6
    logged = {name for row in mine.state.log_history for name in row}
    assert "sequence_kl" not in logged  # it was not computed, so nothing is said of it
    assert ("kl" in logged) == (changes.get("beta") != 0.0)


def forwards(trainer: Any) -> tuple[int, int]:
    """(Calls of the policy's forward outside `generate`, all calls) in a whole run."""
    calls: list[bool] = []
    source = getattr(trainer, "source", None)
    if source is not None:
        source.calibrate(torch.eye(6)[:, :5])  # so that nothing is sampled before training
        trainer.calibrate_on_reference = lambda: source.calibration
    policy = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    policy.register_forward_hook(lambda *given: calls.append(bool(given[2].get("fused_lm_head"))), with_kwargs=True)
    trainer.train()
    return sum(calls), len(calls)


def test_weighting_off_adds_no_forward(policy_path: Path, tmp_path: Path) -> None:
    plain = forwards(stock(policy_path, tmp_path / "a", max_steps=3))
    assert plain[1] > plain[0] == 3
    assert forwards(ours(policy_path, tmp_path / "b", preset="vanilla", max_steps=3)) == plain


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_kl": 0.5},
        {"preset": "mean", "target_kl": 0.5},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"generation_kwargs": {"min_new_tokens": 6}, "temperature": 0.8, "top_k": 5},
        {"mask_truncated_completions": True},
        {"pad_to_multiple_of": 8},
        pytest.param(
            {"gradient_checkpointing": True},  # TRL 1.16 calls it by a name that transformers is about to remove
            marks=pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),
        ),
    ],
)
def test_weighting_on_adds_no_forward_either(policy_path: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Where TRL leaves the policy's log-probabilities out before the rewards, they are recorded while sampling."""
    mine = {"beta": 0.5, "max_steps": 3, "bf16": False} | changes
    theirs = {name: value for name, value in mine.items() if name not in ("preset", "target_kl")}
    expected = forwards(stock(policy_path, tmp_path / "a", **theirs))[0]
    trainer = ours(policy_path, tmp_path / "b", **mine)
    assert forwards(trainer)[0] == expected
    shaped = trainer.last_shaped
    assert shaped is not None
    assert float(shaped.log_ratio.abs().max()) > 1e-4 or changes.get("mask_truncated_completions")


def test_what_was_sampled_otherwise_costs_one_forward(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that don't line up are noticed, said, and computed as before: the same log-ratios, one forward more."""
    rows = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(4)]

    def ratios(trainer: Any) -> torch.Tensor:
        trainer.calibrate_on_reference()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.05)
        trainer.model.train()
        torch.manual_seed(7)
        trainer._generate_and_score_completions(rows)
        found: torch.Tensor = trainer.last_shaped.log_ratio
        return found

    recorded = ratios(ours(policy_path, tmp_path / "a", beta=0.5))
    monkeypatch.setattr(TokenRecorder, "sequence_log_probability", lambda *_: None)
    with pytest.warns(UserWarning, match="not the tokens that were watched"):
        computed = ratios(ours(policy_path, tmp_path / "b", beta=0.5))
    assert float(computed.abs().max()) > 1e-2
    torch.testing.assert_close(recorded, computed, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="not the tokens that were watched"):
        assert forwards(ours(policy_path, tmp_path / "c", beta=0.5, max_steps=3))[0] == 6


@pytest.mark.parametrize("name", ["use_vllm", "rollout_func", "tools"])
def test_other_samplers_are_not_watched(policy_path: Path, tmp_path: Path, name: str) -> None:
    trainer = ours(policy_path, tmp_path, beta=0.5)
    trainer._watched = []
    assert trainer._recordable
    setattr(trainer, name, True)
    assert not trainer._recordable


@pytest.mark.parametrize("scale", ["none", "batch"])
@pytest.mark.parametrize("preset", ["variance_aware", "literal"])
def test_advantages_recomputed_from_the_tokens(policy_path: Path, tmp_path: Path, preset: str, scale: str) -> None:
    """Each advantage, after TRL's shuffling and splitting, is the objective's for that row's own tokens."""
    trainer = ours(
        policy_path, tmp_path, preset=preset, beta=0.5, per_device_train_batch_size=4, gradient_accumulation_steps=4,
        generation_batch_size=16, max_steps=3, scale_rewards=scale,
    )  # fmt: skip
    trainer.train()
    policy = AutoModelForCausalLM.from_pretrained(policy_path)
    policy.load_state_dict({k: v for k, v in trainer.model.state_dict().items() if k in policy.state_dict()})
    reference = AutoModelForCausalLM.from_pretrained(policy_path)
    trainer.model.train()
    prompts = [{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(4)]
    batch = trainer._generate_and_score_completions(prompts)
    ratio = torch.tensor(
        [
            sequence_log_probability(policy, real(batch, "prompt", i), real(batch, "completion", i))
            - sequence_log_probability(reference, real(batch, "prompt", i), real(batch, "completion", i))
            for i in range(16)
        ]
    )
    shaped = trainer.last_shaped
    assert shaped is not None
    assert float(ratio.abs().max()) > 1e-3
    torch.testing.assert_close(shaped.log_ratio.double(), ratio.double(), rtol=1e-3, atol=1e-4)
    penalty = shaped.weight.double() * (ratio + (1.0 if preset == "literal" else 0.0))
    total = shaped.reward.double() - trainer.beta * penalty
    expected = group_relative(total, 4, scale)
    torch.testing.assert_close(batch["advantages"].double(), expected, rtol=1e-3, atol=1e-3)


def test_the_loss_has_no_second_kl(policy_path: Path, tmp_path: Path) -> None:
    """With weighting on, the loss's gradient doesn't know the reference's log-probabilities."""
    trainer = ours(policy_path, tmp_path, preset="variance_aware", beta=0.5, max_steps=1)
    trainer.train()
    batch = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS[:2] for _ in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    reference = batch["ref_per_token_logps"]
    with torch.no_grad():
        losses = [
            float(trainer._compute_loss(trainer.model, batch | {"ref_per_token_logps": reference + shift}))
            for shift in (0.0, 3.0)
        ]
    assert losses[0] == losses[1]
    assert trainer.beta == 0.5


def test_weighting_changes_the_trajectory_and_is_logged(policy_path: Path, tmp_path: Path) -> None:
    plain = ours(policy_path, tmp_path / "plain", preset="mean", beta=1.0, scale_rewards="none")
    plain.train()
    weighted = ours(policy_path, tmp_path / "weighted", preset="variance_aware", beta=1.0)
    weighted.train()
    assert difference(plain, weighted) > 1e-4
    logged = {name for row in weighted.state.log_history for name in row}
    assert {"sequence_kl", "weight/median", "reward/variance", "reward/penalty", "beta"} <= logged


def test_the_budget_moves_beta_without_weighting_too(policy_path: Path, tmp_path: Path) -> None:
    trainer = ours(policy_path, tmp_path, preset="mean", target_kl=0.5, beta=1.0)
    trainer.train()
    assert trainer.beta != 1.0
    assert any("sequence_kl" in row for row in trainer.state.log_history)


def test_settings_that_undo_the_penalty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='set scale_rewards="none"'):
        VarianceAwareGRPOConfig(str(tmp_path), scale_rewards="group", use_cpu=True)
    with pytest.raises(ConfigError, match="sum_then_normalize"):
        VarianceAwareGRPOConfig(str(tmp_path), multi_objective_aggregation="normalize_then_sum", use_cpu=True)
    with pytest.raises(ConfigError, match="beta is 0"):
        VarianceAwareGRPOConfig(str(tmp_path), beta=0.0, use_cpu=True)
    assert VarianceAwareGRPOConfig(str(tmp_path), use_cpu=True).scale_rewards == "none"
    assert VarianceAwareGRPOConfig(str(tmp_path), preset="mean", use_cpu=True).scale_rewards == "group"


def test_group_relative_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, float("nan"), 10.0, 10.0, 10.0])
    assert group_relative(rewards, 3).tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    scaled = group_relative(rewards, 3, "group")
    assert scaled[1].item() == pytest.approx(1.0 / (2**0.5 + 1e-4))
    batch = group_relative(rewards, 3, "batch")
    spread = torch.tensor([1.0, 3.0, 10.0, 10.0, 10.0]).std()
    assert batch[1].item() == pytest.approx(1.0 / (float(spread) + 1e-4))


def test_shrunken_advantages_are_grpos_times_the_root_of_the_reliability(policy_path: Path, tmp_path: Path) -> None:
    trainer = ours(policy_path, tmp_path, preset="shrunken_scaled", beta=0.5, max_steps=1, anchor="group")
    trainer.train()
    trainer.model.train()
    size = trainer.num_generations
    trainer._generate_and_score_completions([{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(size)])
    shaped = trainer.last_shaped
    assert shaped is not None
    groups = torch.arange(4 * size) // size
    reliability = group_reliability(shaped.estimate.mean, shaped.estimate.variance, groups)
    assert 0.0 < float(reliability.max()) < 1.0
    assert len(reliability.unique()) > 1
    expected = reliability.sqrt() * group_relative(shaped.estimate.mean, size, "group")
    torch.testing.assert_close(shaped.reward, expected)
    # TRL subtracts the group's mean once more, and adds nothing.
    torch.testing.assert_close(shaped.total(0.0), expected)
