"""Anchors inside TRL's RLOO and GRPO: drawn from the reference, kept, resumed, read from a file, and refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from surefoot.errors import ConfigError, DataError, RunError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.bridge import ANCHORS, STATE
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.training.sampling import sample_completions
from tests.training.test_prompt_anchors import rows_of
from tests.training.test_rloo_trainer import PROMPTS, common, difference, panel

KINDS = {
    "rloo": (VarianceAwareRLOOTrainer, VarianceAwareRLOOConfig),
    "grpo": (VarianceAwareGRPOTrainer, VarianceAwareGRPOConfig),
}
NEW = ["a red dog", "blue", "the green cat", "sleeps and"]


def texts(completions: Any) -> list[str]:
    return [c if isinstance(c, str) else c[0]["content"] for c in completions]


def trainer_of(
    kind: str, policy: Any, output: Path, *, reward: Any = None, data: Any = None, keywords: Any = None, **changes: Any
) -> Any:
    trainer_class, config_class = KINDS[kind]
    trainer = trainer_class(
        str(policy) if isinstance(policy, Path) else policy,
        FunctionMembers(lambda prompts, completions: panel(prompts, texts(completions)), 5)
        if reward is None
        else reward,
        config_class(**common(output, **({"beta": 0.5} | changes))),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}) if data is None else data,
        **(keywords or {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def reference_completions(policy: Any, tokenizer: Any, prompts: list[str], seed: int) -> list[str]:
    """Sampled without TRL, from weights that the trainer never had in its hands."""
    return sample_completions(policy, tokenizer, prompts, max_new_tokens=6, seed=seed)


def expected_anchors(trainer: Any, policy: Any, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    asked = [prompt for prompt in prompts for _ in range(trainer.args.anchor_completions)]
    digests = [hashlib.sha256(prompt.encode()).hexdigest()[:32] for prompt in prompts]
    words = " ".join([str(trainer.args.seed), "0", *digests])
    seed = int(hashlib.sha256(words.encode()).hexdigest()[:15], 16)
    completions = reference_completions(policy, tokenizer, asked, seed)
    scores = torch.tensor(panel(asked, completions)).view(len(prompts), -1, 5)
    return scores.mean(dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_prompt_s_anchor_is_the_reference_s(kind: str, policy_path: Path, tmp_path: Path) -> None:
    """The policy has moved far; its reference's completions are drawn, by another sampler, from the saved weights."""
    trainer = trainer_of(
        kind, policy_path, tmp_path, learning_rate=5e-2, max_steps=6, anchor_completions=2, calibration_prompts=2
    )
    trainer.train()
    trainer.model.train()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    reference = AutoModelForCausalLM.from_pretrained(policy_path)
    found = trainer.anchors.of(rows_of(*NEW))
    expected = expected_anchors(trainer, reference, tokenizer, NEW)
    torch.testing.assert_close(found.rows, expected, rtol=0, atol=1e-6)
    of_policy = expected_anchors(trainer, trainer.model, tokenizer, NEW)
    assert float((of_policy - expected).abs().max()) > 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["new", "given"])
def test_under_peft_it_is_the_base_s_or_the_adapter_s_it_began_with(
    kind: str, start: str, policy_path: Path, tmp_path: Path
) -> None:
    """With dropout in the adapter, which the reference must not have either."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.3)
    reference: Any = AutoModelForCausalLM.from_pretrained(policy_path)
    policy, keywords = policy_path, {"peft_config": config}
    if start == "given":
        policy, keywords = get_peft_model(AutoModelForCausalLM.from_pretrained(policy_path), config), {}
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
        reference = get_peft_model(reference, config)
        reference.load_state_dict(policy.state_dict())
    trainer = trainer_of(
        kind, policy, tmp_path, keywords={**keywords, "processing_class": AutoTokenizer.from_pretrained(policy_path)},
        learning_rate=5e-2, max_steps=6, anchor_completions=2, calibration_prompts=2,
    )  # fmt: skip
    trainer.train()
    trainer.model.train()
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    found = trainer.anchors.of(rows_of(*NEW))
    assert trainer.model.training
    torch.testing.assert_close(found.rows, expected_anchors(trainer, reference, tokenizer, NEW), rtol=0, atol=1e-6)
    with torch.no_grad():
        ids = torch.arange(2, 8)[None]
        trainer.model.eval()
        reference.eval()
        gap = (trainer.model(ids).logits - reference(ids).logits).abs().max()
    assert float(gap) > 0.1  # the adapter is on again, and has moved


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
def test_gradient_checkpointing_stays_on(kind: str, policy_path: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "calibration_prompts": 6, "anchor_completions": 2}
    for name, keywords in (("whole", {}), ("adapter", {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=2)})):
        found = []
        for on in (False, True):
            trainer = trainer_of(
                kind, policy_path, tmp_path / f"{name}{on}", keywords=keywords, gradient_checkpointing=on, **changes
            )
            trainer.train()
            assert trainer.model.is_gradient_checkpointing == on
            found.append(trainer)
        assert difference(*found) <= 1e-6
        stores = [trainer.anchors.store.of(PROMPTS[:1]).rows for trainer in found]
        torch.testing.assert_close(*stores, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_leaves_no_trace_in_the_trainer(kind: str, policy_path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(kind, policy_path, tmp_path, max_steps=2, anchor_completions=2)
    trainer.train()
    trainer.model.train()
    recorder = object()
    trainer._watched, trainer._recorder, trainer._forward = ["watched"], recorder, ("forward", {})
    trainer._metrics["train"]["kl"] = [1.0, 2.0]
    trainer._metrics["eval"]["kl"] = [3.0]
    before = (trainer.state.num_input_tokens_seen, torch.get_rng_state(), trainer.model_wrapped)
    assert before[0] > 0
    for training in (True, False):
        trainer.model.train(training)
        trainer._known_anchors(rows_of(f"a dog {training}", "the cat sleeps"))
        assert trainer.model.training == training
    assert trainer._watched == ["watched"]
    assert trainer._recorder is recorder
    assert trainer._forward == ("forward", {})
    assert dict(trainer._metrics["train"]) == {"kl": [1.0, 2.0]}
    assert dict(trainer._metrics["eval"]) == {"kl": [3.0]}
    assert trainer.state.num_input_tokens_seen == before[0]
    assert bool((torch.get_rng_state() == before[1]).all())
    assert trainer.model_wrapped is before[2]
    assert (trainer.use_vllm, trainer.use_transformers_continuous_batching) == (False, False)


def test_a_source_that_draws_random_numbers_does_not_move_training_s(policy_path: Path, tmp_path: Path) -> None:
    def noisy(prompts: Any, completions: Any) -> list[list[float]]:
        torch.rand(3)
        return panel(prompts, completions)

    trainer = trainer_of("rloo", policy_path, tmp_path, reward=FunctionMembers(noisy, 5))
    before = torch.get_rng_state()
    trainer._known_anchors(rows_of("a", "the"))
    assert bool((torch.get_rng_state() == before).all())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_and_unweighted_runs_see_the_same_samples_at_first(
    kind: str, policy_path: Path, tmp_path: Path
) -> None:
    """Weights act from the second batch on, since the policy begins at its reference."""
    seen, rows = {}, {}
    for name, changes in (("plain", {"preset": "mean", "scale_rewards": "none"}), ("weighted", {})):
        if kind == "rloo":
            changes = {key: value for key, value in changes.items() if key != "scale_rewards"}
        batches: list[Any] = []

        def remember(prompts: Any, completions: Any, batches: list[Any] = batches) -> list[float]:
            batches.append((prompts, completions))
            return [0.0] * len(prompts)

        trainer = trainer_of(
            kind, policy_path, tmp_path / name, max_steps=4, calibration_prompts=2, learning_rate=1e-2,
            keywords={"monitors": {"seen": remember}}, beta=2.0, **changes,
        )  # fmt: skip
        trainer.train()
        seen[name], rows[name] = batches, trainer.state.log_history
    assert seen["plain"][0] == seen["weighted"][0]
    assert seen["plain"][-1] != seen["weighted"][-1]
    for key in ("num_tokens", "completions/mean_length", "completions/clipped_ratio"):
        assert rows["plain"][0][key] == rows["weighted"][0][key]


class Draws:
    """Remembers which prompts a trainer's anchors were drawn for."""

    def __init__(self, trainer: Any) -> None:
        self.prompts: list[Any] = []
        inner = trainer.anchors._sample

        def draw(prompts: Any, seed: int) -> Any:
            self.prompts += list(dict.fromkeys(prompts))
            return inner(prompts, seed)

        trainer.anchors._sample = draw


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_anchors_of_one_that_was_left_alone(
    kind: str, policy_path: Path, tmp_path: Path
) -> None:
    """From a checkpoint at which some prompts had anchors and others hadn't come up yet."""
    data = Dataset.from_dict(
        {"prompt": [f"{a} {b}" for a in ("the", "a", "red", "blue") for b in ("cat", "dog", "and")]}
    )
    settings: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 2, "max_steps": 5, "calibration_prompts": 2, "anchor_completions": 2,
        "data": data,
    }  # fmt: skip
    whole = trainer_of(kind, policy_path, tmp_path / "whole", **settings)
    draws = Draws(whole)
    whole.train()
    assert len(draws.prompts) == len(set(draws.prompts)) == len(whole.anchors.store)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert json.loads((checkpoint / STATE).read_text())["anchor"] == "reference"
    known = AnchorStore.load(checkpoint / ANCHORS, whole.source)
    assert 2 < len(known) < len(whole.anchors.store)
    resumed = trainer_of(kind, policy_path, tmp_path / "resumed", **settings)
    later = Draws(resumed)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert later.prompts == draws.prompts[len(known) :]
    torch.testing.assert_close(
        resumed.anchors.store.of(draws.prompts).rows, whole.anchors.store.of(draws.prompts).rows, rtol=0, atol=0
    )
    assert difference(whole, resumed) <= 1e-6


def test_a_checkpoint_of_another_kind_of_anchor_is_refused(policy_path: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer_of("rloo", policy_path, tmp_path / "a", anchor="group", **settings).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-1")
    with pytest.raises(ConfigError, match="set anchor: group to go on"):
        trainer_of("rloo", policy_path, tmp_path / "b", **settings).train(resume_from_checkpoint=checkpoint)
    plain = trainer_of("rloo", policy_path, tmp_path / "c", preset="mean", **settings)
    plain.train(resume_from_checkpoint=checkpoint)  # reads no anchors
    state = json.loads((Path(checkpoint) / STATE).read_text())
    (Path(checkpoint) / STATE).write_text(json.dumps(state | {"anchor": "reference"}))
    with pytest.raises(RunError, match="not a file of anchors"):
        trainer_of("rloo", policy_path, tmp_path / "d", **settings).train(resume_from_checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_anchors_is_read_and_completed(kind: str, policy_path: Path, tmp_path: Path) -> None:
    """Its rows are taken as they stand, only other prompts are drawn, and checkpoints don't hold a copy of it."""
    prepared = AnchorStore("function", 2)
    prepared.add(PROMPTS[:4], torch.arange(40.0).view(8, 5))
    path = prepared.save(tmp_path / "anchors.safetensors")
    settings: dict[str, Any] = {"anchor_file": str(path), "max_steps": 6, "anchor_completions": 3}
    settings |= {"save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(kind, policy_path, tmp_path / "run", **settings)
    draws = Draws(trainer)
    trainer.train()
    assert set(draws.prompts) == set(PROMPTS[4:6])
    found = trainer.anchors.of(rows_of(*PROMPTS[:6]))
    assert found.rows[:4].tolist() == prepared.of(PROMPTS[:4]).rows.tolist()
    assert found.count.tolist() == [2.0] * 4 + [3.0] * 2
    held = AnchorStore.load(tmp_path / "run" / "checkpoint-3" / ANCHORS, trainer.source)
    assert len(held) == 2
    resumed = trainer_of(kind, policy_path, tmp_path / "again", **settings)
    again = Draws(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again.prompts == []
    assert difference(trainer, resumed) <= 1e-6


def test_a_file_of_another_source_is_refused(policy_path: Path, tmp_path: Path) -> None:
    path = AnchorStore("heads", 2).save(tmp_path / "anchors.safetensors")
    with pytest.raises(DataError, match=r"of the source 'heads', but the source is 'function'"):
        trainer_of("rloo", policy_path, tmp_path, anchor_file=str(path))
    with pytest.raises(RunError, match="not a file of anchors"):
        trainer_of("rloo", policy_path, tmp_path, anchor_file=str(tmp_path / "none"))


@pytest.mark.slow
def test_a_file_of_everything_needs_no_reference(policy_path: Path, tmp_path: Path) -> None:
    """LCB without a penalty: TRL keeps no reference, and none is needed until a prompt comes that the file lacks."""
    prepared = AnchorStore("function", 1)
    prepared.add(PROMPTS[:6], torch.arange(30.0).view(6, 5))
    path = str(prepared.save(tmp_path / "anchors.safetensors"))
    settings: dict[str, Any] = {"preset": "lcb", "beta": 0.0, "max_steps": 2}
    with pytest.raises(ConfigError, match="with beta=0 TRL keeps no reference policy"):
        trainer_of("rloo", policy_path, tmp_path / "a", **settings)
    trainer = trainer_of("rloo", policy_path, tmp_path / "b", anchor_file=path, **settings)
    trainer.train()
    assert len(trainer.anchors.store) == 0
    with pytest.raises(ConfigError, match="with beta=0 TRL keeps no reference policy"):
        trainer.anchors.of(rows_of("a new one"))
    for anchor in ("calibration", "group"):
        trainer_of("rloo", policy_path, tmp_path / anchor, anchor=anchor, **settings).train()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("messages", [False, True])
def test_streams(kind: str, messages: bool, policy_path: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS] if messages else list(PROMPTS)

    seen: list[Any] = []

    def stream() -> Any:
        for prompt in prompts:
            yield {"prompt": prompt}

    def see(given: Any, completions: Any) -> list[float]:
        seen.extend(given)
        return [0.0] * len(given)

    trainer = trainer_of(
        kind, policy_path, tmp_path, data=IterableDataset.from_generator(stream), max_steps=3, calibration_prompts=2,
        keywords={"processing_class": tokenizer, "monitors": {"seen": see}}, anchor_completions=2,
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 3 * 8
    assert all(prompt in trainer.anchors.store for prompt in [*prompts[:2], *seen])
    assert len(trainer.anchors.store) == len({json.dumps(prompt) for prompt in [*prompts[:2], *seen]})
    assert set(trainer.last_shaped.estimate.anchor_kinds) == {"reference"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generations", [4, 1])
def test_evaluation(kind: str, generations: int, policy_path: Path, tmp_path: Path) -> None:
    """Its prompts get anchors too, and a completion that is alone needs no company to be weighed."""
    trainer = trainer_of(
        kind, policy_path, tmp_path, max_steps=2, keywords={"eval_dataset": Dataset.from_dict({"prompt": NEW})},
        per_device_eval_batch_size=4, num_generations_eval=generations,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    assert all(prompt in trainer.anchors.store for prompt in NEW)
    shaped = trainer.last_shaped
    assert set(shaped.estimate.anchor_kinds) == {"reference"}
    assert len(shaped.weight) == 4
    assert not bool(shaped.weight.isnan().any())
    assert 6 < found["eval_anchors/prompts"] <= len(trainer.anchors.store)
    assert found["eval_weight/mean"] > 0
