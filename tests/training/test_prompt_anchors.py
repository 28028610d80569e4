"""Anchors of the trainers: those of the reference whatever the policy has become, made once, and nobody notices."""

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import ModelConfig

from surefoot.errors import ConfigError, DataError, RunError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.functions import FunctionMembers, FunctionReward
from surefoot.training.bridge import ANCHORS, STATE
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.prompt_anchors import PromptAnchors
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.training.run_online import OnlineScriptArguments, run_online
from surefoot.training.sampling import sample_completions
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


# --- by themselves ---------------------------------------------------------------------------------------------------


class Writer:
    """Writes completions "word word …", as many words as the call's number, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []
        self.seeds: list[int] = []

    def __call__(self, prompts: Any, seed: int) -> list[str]:
        self.asked.append(list(prompts))
        self.seeds.append(seed)
        return [f"{len(self.asked)} {i}" for i in range(len(prompts))]


def numbers(prompts: Any, completions: Any) -> list[list[float]]:
    """Two members: the completion's two numbers; -1 is unscored."""
    rows = [[float(number) for number in text.split()] for text in completions]
    return [[math.nan if number < 0 else number for number in row] for row in rows]


def alone(kind: Any = "reference", completions: int = 2, **changes: Any) -> tuple[PromptAnchors, Writer]:
    source, writer = FunctionMembers(numbers, 2), Writer()
    store = AnchorStore(source.name, completions)
    return PromptAnchors(source, store, Accelerator(cpu=True), writer, 0, kind, **changes), writer


def rows_of(*prompts: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt} for prompt in prompts]


def test_a_new_prompt_is_drawn_once() -> None:
    anchors, writer = alone()
    first = anchors.of(rows_of("a", "a", "b"))
    assert writer.asked == [["a", "a", "b", "b"]]
    # Completions "1 0", "1 1" of a and "1 2", "1 3" of b.
    assert first.rows.tolist() == [[1.0, 0.5], [1.0, 0.5], [1.0, 2.5]]
    assert (first.kind, first.count.tolist(), first.holds_own) == ("reference", [2.0] * 3, False)
    second = anchors.of(rows_of("b", "c"))
    assert writer.asked[1:] == [["c", "c"]]
    assert second.rows.tolist() == [[1.0, 2.5], [2.0, 0.5]]
    anchors.of(rows_of("c", "b", "a"))
    assert len(writer.asked) == 2


def test_seeds_are_of_the_prompts_that_are_drawn_together_and_of_the_run() -> None:
    def seeds(seed: int, *batches: tuple[str, ...]) -> list[int]:
        anchors, writer = alone()
        anchors._seed = seed
        for batch in batches:
            anchors.of(rows_of(*batch))
        return writer.seeds

    first = seeds(0, ("a", "b"), ("c",))
    assert seeds(0, ("c",), ("b", "a"), ("a", "b", "c")) != first
    assert seeds(0, ("c",), ("a", "b")) == first[::-1]  # whatever was drawn before
    assert seeds(1, ("a", "b"), ("c",)) != first
    assert len({*first, *seeds(1, ("a", "b"), ("c",))}) == 4


def test_messages_are_known_by_their_content() -> None:
    anchors, writer = alone()
    chat = [{"role": "user", "content": "a"}]
    anchors.of(rows_of(chat))
    anchors.of(rows_of([{"content": "a", "role": "user"}], "a"))
    assert writer.asked == [[chat, chat], ["a", "a"]]


def test_what_is_prepared_is_not_drawn(tmp_path: Path) -> None:
    prepared = AnchorStore("function", 3)
    prepared.add(["a"], torch.tensor([[7.0, 1.0], [7.0, 2.0], [7.0, 6.0]]))
    anchors, writer = alone(prepared=AnchorStore.load(prepared.save(tmp_path / "file"), FunctionMembers(numbers, 2)))
    found = anchors.of(rows_of("a", "b"))
    assert writer.asked == [["b", "b"]]
    assert found.rows.tolist() == [[7.0, 3.0], [1.0, 0.5]]
    assert found.count.tolist() == [3.0, 2.0]
    assert len(anchors.store) == 1  # the checkpoint holds what this run made, not a copy of the file


def test_unscored_reference_completions_do_not_count() -> None:
    anchors, _ = alone()
    replies = iter([["3 -1", "5 4"], ["-1 -1", "-1 -1"]])
    anchors._sample = lambda prompts, seed: next(replies)
    found = torch.cat([anchors.of(rows_of(prompt)).rows for prompt in "ab"])
    assert found[0].tolist() == [4.0, 4.0]
    assert bool(found[1].isnan().all())


def test_the_data_s_own_completions() -> None:
    anchors, writer = alone("dataset", 1)
    rows = [
        {"prompt": "a", "chosen": "1 2", "rejected": "3 8"},
        {"prompt": "b", "completion": "9 9", "chosen": None},
        {"prompt": "c", "chosen": "4 -1", "rejected": "6 1"},
    ]
    found = anchors.of(rows)
    assert writer.asked == []
    assert found.rows.tolist() == [[2.0, 5.0], [9.0, 9.0], [5.0, 1.0]]
    assert (found.kind, found.count.tolist()) == ("dataset", [2.0, 1.0, 2.0])
    again = anchors.of([rows[0] | {"chosen": "0 0"}])  # they are fixed by the prompt's first row
    assert again.rows.tolist() == [[2.0, 5.0]]
    with pytest.raises(DataError, match=r"needs a completion, or chosen and rejected.*has answer, prompt"):
        anchors.of([{"prompt": "d", "answer": "1 1"}])


@pytest.mark.parametrize("row", [{"image": "a cat"}, {"images": ["a cat"]}])
def test_images_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="by the prompt's text"):
        alone()[0].of([{"prompt": "a"} | row])
    assert len(alone()[0].of([{"prompt": "a", "image": None, "images": []}])) == 1


@pytest.mark.parametrize(("rows", "processes"), [(8, 2), (8, 3), (1, 4), (5, 4), (7, 1)])
def test_processes_share_the_rows_in_order(rows: int, processes: int) -> None:
    anchors, _ = alone()

    class Process:
        num_processes, process_index = processes, 0

    shares = []
    for index in range(processes):
        process = Process()
        process.process_index = index
        anchors.accelerator = process  # type: ignore[assignment]
        shares.append(anchors._share(rows))
    assert len({len(share) for share in shares}) == 1  # or the shorter one's gather waits for ever
    together = [i for share in shares for i in share]
    assert together[:rows] == list(range(rows))
    assert len(together) - rows < processes


# --- in the trainers -------------------------------------------------------------------------------------------------


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
        record = run_online(
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
        shaped, scores = shape(*given)
        for row, kind in zip(given[0], shaped.estimate.anchor_kinds, strict=True):
            kinds.add(("dog" in row["prompt"], kind))
        assert not bool(shaped.weight.isnan().any())
        return shaped, scores

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
