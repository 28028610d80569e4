"""What is recorded while generating is what an independent forward of the same tokens gives, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from surefoot.training.token_recorder import TokenRecorder

PAD, EOS = 0, 1


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def prompts(rows: int, width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random words, padded on the left by up to half."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 12, (rows, width), generator=generator)
    empty = torch.arange(rows) % (width // 2 + 1)
    mask = (torch.arange(width)[None] >= empty[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def generate(model: Any, recorder: TokenRecorder, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    torch.manual_seed(1)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    with recorder.watching(base):
        output = model.generate(**inputs, do_sample=True, pad_token_id=PAD, eos_token_id=EOS, **settings)
    assert not base._forward_hooks  # nothing is left on the model
    found: torch.Tensor = output[:, inputs["input_ids"].shape[1] :]
    return found


def own_tokens(completions: torch.Tensor) -> torch.Tensor:
    """1 up to and including the first end, as TRL has it."""
    ended = (completions == EOS).int().cumsum(dim=1) - (completions == EOS).int()
    return (ended == 0).long()


@torch.no_grad()
def independently(
    model: Any, inputs: dict[str, torch.Tensor], completions: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """One whole forward without a cache, in float64."""
    ids = torch.cat([inputs["input_ids"], completions], dim=1)
    attention = torch.cat([inputs["attention_mask"], mask], dim=1)
    places = (attention.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=attention, position_ids=places, use_cache=False).logits[:, :-1].double()
    logs = (logits / temperature).log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (logs[:, -completions.shape[1] :] * mask).sum(dim=1)


@pytest.mark.parametrize(
    ("rows", "width", "tokens", "temperature", "settings"),
    [
        (1, 1, 1, 1.0, {}),
        (1, 4, 9, 1.0, {}),
        (12, 6, 20, 1.0, {}),
        (64, 3, 30, 0.7, {}),
        (16, 5, 12, 1.3, {"top_k": 3}),
        (16, 5, 12, 1.0, {"min_new_tokens": 12}),
        (16, 5, 12, 1.0, {"repetition_penalty": 1.5, "top_p": 0.8}),
        (8, 5, 7, 1.0, {"use_cache": False}),
        (8, 5, 7, 1.0, {"cache_implementation": "static"}),
    ],
)
def test_the_sums_of_an_independent_forward(
    policy_path: Path, rows: int, width: int, tokens: int, temperature: float, settings: dict[str, Any]
) -> None:
    """Measured gap 2e-6 at most, on sums of up to 30 tokens in float32."""
    model, inputs = load(policy_path), prompts(rows, width)
    recorder = TokenRecorder(temperature)
    given = {"top_k": 0, "disable_compile": True} | settings
    completions = generate(model, recorder, inputs, max_new_tokens=tokens, temperature=temperature, **given)
    mask = own_tokens(completions)
    found = recorder.sequence_log_probability(completions, mask)
    assert found is not None
    expected = independently(model, inputs, completions, mask, temperature)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_early_ends_and_padding_beyond_what_was_generated(policy_path: Path) -> None:
    """Rows that ended count up to their end; TRL may pad further, and may leave whole rows out."""
    model, inputs = load(policy_path), prompts(32, 4)
    recorder = TokenRecorder()
    completions = generate(model, recorder, inputs, max_new_tokens=16, top_k=0)
    mask = own_tokens(completions)
    lengths = mask.sum(dim=1)
    assert len(lengths.unique()) > 3
    mask[::3] = 0
    wide = torch.nn.functional.pad(completions, (0, 5), value=PAD)
    found = recorder.sequence_log_probability(wide, torch.nn.functional.pad(mask, (0, 5)))
    assert found is not None
    assert found[::3].eq(0.0).all()
    torch.testing.assert_close(found.double(), independently(model, inputs, completions, mask, 1.0), rtol=0, atol=1e-5)
    again = recorder.sequence_log_probability(completions, mask)
    assert again is not None
    torch.testing.assert_close(again, found)


def test_all_rows_left_out(policy_path: Path) -> None:
    recorder = TokenRecorder()
    completions = generate(load(policy_path), recorder, prompts(3, 4), max_new_tokens=3, top_k=0)
    found = recorder.sequence_log_probability(completions, torch.zeros_like(completions))
    assert found is not None
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_an_adapter_is_heard(policy_path: Path) -> None:
    model = get_peft_model(load(policy_path), LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    inputs, recorder = prompts(8, 4), TokenRecorder()
    completions = generate(model, recorder, inputs, max_new_tokens=6, top_k=0)
    mask = own_tokens(completions)
    found = recorder.sequence_log_probability(completions, mask)
    assert found is not None
    torch.testing.assert_close(found.double(), independently(model, inputs, completions, mask, 1.0), rtol=0, atol=1e-5)
    with model.disable_adapter():
        base = independently(model, inputs, completions, mask, 1.0)
    assert float((base - found).abs().max()) > 1e-2


def test_one_step_of_logits_is_held_at_most(policy_path: Path) -> None:
    recorder = TokenRecorder()
    completions = generate(load(policy_path), recorder, prompts(4, 4), max_new_tokens=10, top_k=0)
    assert recorder.sequence_log_probability(completions, own_tokens(completions)) is not None
    held = [value for value in vars(recorder).values() if isinstance(value, torch.Tensor)]
    held += [part for value in vars(recorder).values() if isinstance(value, list) for part in value]
    assert all(part.shape == (4,) for part in held)
    assert len(held) == 2 * completions.shape[1]


@pytest.mark.parametrize("change", ["token", "order", "rows", "longer", "nothing watched", "chunks", "beams", "twice"])
def test_other_tokens_are_noticed(policy_path: Path, change: str) -> None:
    model, inputs, recorder = load(policy_path), prompts(6, 6), TokenRecorder()
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "top_k": 0}
    if change == "chunks":
        settings["prefill_chunk_size"] = 2
    if change == "beams":
        settings["num_beams"] = 3
    completions = generate(model, recorder, inputs, **settings)
    if change == "twice":
        completions = generate(model, recorder, inputs, **settings)
    if change == "token":
        completions = completions.clone()
        completions[2, 3] = 2 + (completions[2, 3] - 1) % 10
    elif change == "order":
        completions = completions.flip(0)
    elif change == "rows":
        completions = completions[:5]
    elif change == "longer":
        completions = torch.cat([completions, completions], dim=1)
    elif change == "nothing watched":
        recorder = TokenRecorder()
    assert recorder.sequence_log_probability(completions, torch.ones_like(completions)) is None
