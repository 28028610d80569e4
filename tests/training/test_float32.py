"""Rounding is no KL: in half precision the log-ratio is that of float32, and the model is left as it was."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.float32 import in_float32, in_half_precision
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from tests.training.test_grpo_trainer import members
from tests.training.test_rloo_trainer import PROMPTS, common

TRAINERS: dict[str, tuple[Any, Any]] = {
    "rloo": (VarianceAwareRLOOConfig, VarianceAwareRLOOTrainer),
    "grpo": (VarianceAwareGRPOConfig, VarianceAwareGRPOTrainer),
}


def trainer(kind: str, policy: Path, output: Path, *, adapters: bool = True, **changes: Any) -> Any:
    config, made = TRAINERS[kind]
    found = made(
        str(policy),
        FunctionMembers(members, 5),
        config(**common(output, **({"beta": 0.1, "target_kl": 1.0, "preset": "mean"} | changes))),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapters else None,
    )
    found.remove_callback(PrinterCallback)
    return found


def true_ratio(model: Any, positional: tuple[Any, ...]) -> torch.Tensor:
    """ln π/π₀ by plain transformers, of a float32 copy of the policy and of its base."""
    ids, mask, width = positional[:3]
    exact = copy.deepcopy(model).float().eval()

    def summed() -> torch.Tensor:
        base = exact.get_base_model()
        with torch.no_grad():
            logits = base.lm_head(base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
        found = logits.log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        return (found[:, -width:] * mask[:, -width:]).sum(dim=1)

    policy = summed()
    with exact.disable_adapter():
        return policy - summed()


def watched(policy: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(true ratios, ratios that entered) of every batch from here on."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = policy._calculate_rewards

    def compare(*given: Any) -> Any:
        expected = true_ratio(policy.accelerator.unwrap_model(policy.model), policy._forward[0])
        found = plain(*given)
        seen.append((expected, policy._shaped.sampled_ratio.float()))
        return found

    monkeypatch.setattr(policy, "_calculate_rewards", compare)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize(
    "half", [{"model_init_kwargs": {"dtype": "bfloat16"}}, {"bf16": True}], ids=["bf16 weights", "autocast"]
)
def test_the_log_ratio_is_that_of_float32(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, half: dict[str, Any]
) -> None:
    """0 exactly before anything is trained; afterwards right to 1e-4, where bf16 itself is off by 1e-3 and more."""
    mine = trainer(kind, policy_path, tmp_path / "a", max_steps=3, learning_rate=1e-2, **half)
    seen = watched(mine, monkeypatch)
    mine.train()
    assert seen[0][1].abs().max() == 0.0
    expected, found = torch.cat([a for a, _ in seen[1:]]), torch.cat([b for _, b in seen[1:]])
    assert float(expected.abs().max()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    logged = [row["sequence_kl"] for row in mine.state.log_history if "sequence_kl" in row]
    assert logged == pytest.approx([float(b.mean()) for _, b in seen], abs=1e-6)
    if kind == "rloo":  # what TRL itself subtracts is the same
        assert mine.last_shaped is not None
        assert float(mine.last_shaped.surcharge.abs().max()) == 0.0
    changes = {"max_steps": 3, "learning_rate": 1e-2, "float32_log_ratio": False, **half}
    noisy = trainer(kind, policy_path, tmp_path / "b", **changes)
    errors = watched(noisy, monkeypatch)
    with pytest.warns(UserWarning, match="float32_log_ratio is off"):
        noisy.train()
    assert float(torch.cat([b - a for a, b in errors]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", TRAINERS)
def test_rounded_log_probabilities_are_summed_in_float32(policy_path: Path, tmp_path: Path, kind: str) -> None:
    """FSDP2 gives the model's output in bf16. TRL's sums over the tokens and ours must agree, or training stops."""
    mine = trainer(kind, policy_path, tmp_path, adapters=False, max_steps=4, learning_rate=1e-2)

    def rounded(module: Any, given: Any, output: Any) -> Any:
        if getattr(output, "log_probs", None) is not None:  # sampling has none
            output.log_probs = output.log_probs.bfloat16()
        return output

    for model in (mine.model, mine.ref_model):
        model.register_forward_hook(rounded)
    mine.train()
    assert mine.state.global_step == 4
    assert max(row.get("sequence_kl", 0.0) for row in mine.state.log_history) > 0.1


def test_a_model_is_left_as_it_was(policy_path: Path) -> None:
    """Its parameters are the same objects with the same numbers, after an error too; inside it computes in float32."""
    model = AutoModelForCausalLM.from_pretrained(policy_path, dtype=torch.bfloat16).train()
    assert in_half_precision(model, "no")
    before = dict(model.named_parameters())
    exact = copy.deepcopy(model).float().eval()
    accelerator = SimpleNamespace(native_amp=True)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad(), in_float32(model, accelerator):
        assert not accelerator.native_amp
        torch.testing.assert_close(model(ids).logits, exact(ids).logits, rtol=0, atol=0)
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16  # raised while it runs only
    with pytest.raises(IndexError), torch.no_grad(), in_float32(model, accelerator):
        model(torch.tensor([[99]]))
    model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), in_float32(model, accelerator):
        model(ids)
    after = dict(model.named_parameters())
    assert all(after[name] is value and value.dtype == torch.bfloat16 for name, value in before.items())
    assert model.training
    assert accelerator.native_amp
    assert not in_half_precision(exact, "no")
    assert in_half_precision(exact, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("half", [{}, {"bf16": True}], ids=["fp32", "autocast"])
def test_cut_off_completions_that_trl_masks_count_in_the_kl(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, half: dict[str, Any]
) -> None:
    """They add nothing to reward and loss, as in TRL; the KL and the controller see them."""
    settings = {"max_completion_length": 4, "mask_truncated_completions": True, "learning_rate": 1e-2, "max_steps": 3}
    mine = trainer(kind, policy_path, tmp_path, generation_kwargs={"min_new_tokens": 4}, **settings, **half)
    with torch.no_grad():
        for name, value in mine.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
    seen = watched(mine, monkeypatch)
    mine.train()
    for expected, found in seen:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert mine.last_shaped is not None
    cut = mine.last_shaped.log_ratio == 0.0
    assert 0.5 < float(cut.double().mean()) <= 1.0
    assert float(mine.last_shaped.sampled_ratio[cut].abs().min()) > 1e-4
    logged = [row["sequence_kl"] for row in mine.state.log_history if "sequence_kl" in row]
    assert logged == pytest.approx([float(b.mean()) for _, b in seen], abs=1e-6)
    assert mine.controller is not None
    assert mine.controller.kl is not None
    assert mine.controller.kl > 0.05
