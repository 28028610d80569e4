"""What a trainer hands to its reward source: messages as messages, and completions that were cut off as unfinished."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.data.messages import is_cut
from surefoot.errors import VarianceError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training import best_of_n
from surefoot.training.best_of_n import BestOfNArguments, run_best_of_n
from surefoot.training.prepare_anchors import draw_completions
from surefoot.training.sampling import sample_completions
from tests.models import WORDS
from tests.training.test_anchors_in_trainers import KINDS, trainer_of
from tests.training.test_dpo_trainer import PAIRS, ours

SIDES = ("chosen", "rejected")
CHAT = "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} {% endfor %}"


class Reader(FunctionMembers):
    """Three members that like length, and a record of what they read."""

    def __init__(self) -> None:
        self.read: list[tuple[Any, Any]] = []
        super().__init__(self._score, 3)

    def _score(self, prompts: Any, completions: Any) -> list[list[float]]:
        self.read += zip(prompts, completions, strict=True)
        return [[len(str(text)) * (1 + k / 10) for k in range(3)] for text in completions]


@pytest.fixture
def chat_policy(policy_path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "chat"
    AutoModelForCausalLM.from_pretrained(policy_path).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [False, True])
def test_a_completion_without_its_end_is_marked(kind: str, chat: bool, chat_policy: Path, tmp_path: Path) -> None:
    """In calibration, for anchors and in training; one that has reached its end is not."""
    source = Reader()
    prompts: list[Any] = ["the cat", "a dog"]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts] if chat else prompts})
    changes = {"max_steps": 2, "anchor_completions": 2, "calibration_prompts": 2, "max_completion_length": 4}
    trainer = trainer_of(kind, chat_policy, tmp_path / "out", reward=source, data=data, **changes)
    seen: list[Any] = []
    inner = trainer._generate

    def watched(*positional: Any) -> Any:
        drawn = inner(*positional)
        seen.extend(zip(drawn[1], drawn[trainer._completions_at], strict=True))
        return drawn

    trainer._generate = watched
    trainer.train()
    ended = [1 in list(ids) for ids, _ in seen]
    assert 0 < sum(ended) < len(ended)
    assert sorted(is_cut(text) for _, text in source.read) == sorted(not end for end in ended)
    assert all(isinstance(text, list) == chat for _, text in source.read)


def test_every_sampler_marks_what_it_cuts(chat_policy: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_policy), AutoTokenizer.from_pretrained(chat_policy)
    model.generation_config.suppress_tokens = [0]  # the padding, which isn't seen in a text
    prompts: list[Any] = [form for word in WORDS for form in (word, [{"role": "user", "content": word}])]
    for texts in (
        sample_completions(model, tokenizer, prompts, max_new_tokens=3, seed=0),
        draw_completions(model.eval(), tokenizer, prompts, 1, max_new_tokens=3),
    ):
        words = [text if isinstance(text, str) else text[0]["content"] for text in texts]
        assert [is_cut(text) for text in texts] == [len(word.split()) == 3 for word in words]
        assert 0 < sum(map(is_cut, texts)) < len(texts)
        assert [isinstance(text, str) for text in texts] == [True, False] * 10


def test_anchors_keep_which_probe_was_cut(chat_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_policy), AutoTokenizer.from_pretrained(chat_policy)
    prompts: list[Any] = [[{"role": "user", "content": word}] for word in ("the", "cat", "dog", "red")]
    texts = sample_completions(model, tokenizer, prompts, max_new_tokens=2, seed=1)
    store, rows = AnchorStore("function", 1), torch.ones(4, 3)
    store.add(prompts, rows)
    for prompt, text, row in zip(prompts, texts, rows, strict=True):
        store.add_probe(prompt, text, row)
    loaded = AnchorStore.load(store.save(tmp_path / "a.safetensors"))
    assert [is_cut(one.completion) for one in loaded.probes] == [is_cut(text) for text in texts]
    assert any(map(is_cut, texts))


def test_best_of_n_gives_its_source_the_messages(
    chat_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the text that the policy's template makes of them; and the file holds them as messages."""
    source = Reader()
    monkeypatch.setattr(best_of_n, "load_source", lambda name: source)
    source.calibrate(torch.tensor([[1.0, 2.0, 4.0], [2.0, 1.0, 3.0], [0.0, 1.0, 5.0]]))
    path = tmp_path / "prompts.jsonl"
    prompts = [[{"role": "user", "content": word}] for word in ("cat", "dog", "red")]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    args = BestOfNArguments(
        str(tmp_path / "out"), str(chat_policy), str(path), "there", n=3, max_completion_length=3, prompts_per_batch=2
    )
    run_best_of_n(args, {})
    assert [prompt for prompt, _ in source.read] == [prompt for prompt in prompts for _ in range(3)]
    assert all(text[0]["role"] == "assistant" for _, text in source.read)
    chosen = load_dataset("parquet", data_files=str(tmp_path / "out" / "chosen.parquet"), split="train")
    assert chosen["prompt"][:] == prompts
    given = [text for _, text in source.read]
    assert all(row["completion"] in given for row in chosen)
    assert pq.read_table(tmp_path / "out" / "chosen.parquet").num_rows == 3


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_run_where_no_variance_is_needed(kind: str, policy_path: Path, tmp_path: Path) -> None:
    """Sparse rewards: three members that agree on every completion at first, and disagree later."""

    def score(prompts: Any, completions: Any) -> list[list[float]]:
        return [[0.5, 0.5, 0.5] for _ in completions]

    trainer = trainer_of(
        kind, policy_path, tmp_path / "a", reward=FunctionMembers(score, 3), preset="mean", max_steps=2
    )
    trainer.train()
    assert trainer.source.calibration.prior is None
    assert [row["reward"] for row in trainer.state.log_history if "reward" in row] == [0.5, 0.5]
    trainer.source.function = lambda prompts, completions: [[0.0, 1.0, 5.0] for _ in completions]
    estimate = trainer.source.estimate(trainer.source.score(["p"], ["c"]))
    assert estimate.mean.tolist() == pytest.approx([2.0])
    assert not estimate.has_variance
    weighted = trainer_of(kind, policy_path, tmp_path / "b", reward=FunctionMembers(score, 3), max_steps=2)
    with pytest.raises(VarianceError, match="agree exactly"):
        weighted.train()


def test_weighted_dpo_reads_an_implicit_prompt_as_the_explicit_one(policy_path: Path, tmp_path: Path) -> None:
    """Given to the trainer as it is, with weights under which the prompt no longer cancels."""
    weights = {"chosen_weight": [0.5, 1.5] * 8, "rejected_weight": [2.0, 0.5] * 8}
    sides = {side: [p + text for p, text in zip(PAIRS["prompt"], PAIRS[side], strict=True)] for side in SIDES}
    losses = []
    for name, data in (("a", sides), ("b", PAIRS)):
        trainer = ours(policy_path, tmp_path / name, Dataset.from_dict(data | weights), max_steps=3)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
