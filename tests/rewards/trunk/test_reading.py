"""Existing reward models, read as plain transformers reads them, and refused where they can't be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedTokenizerFast,
)

from surefoot.errors import ModelError
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.independent.source import IndependentMembers, Member
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import check_templates, load_base, load_encoder, load_trunk, positions
from surefoot.rewards.trunk.reading import decoder_head
from surefoot.rewards.trunk.text_encoder import TextEncoder

CPU = torch.device("cpu")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
PROMPTS = ["the cat ", "a dog and ", "red "]
COMPLETIONS = ["runs", "sleeps the green blue", "a cat runs and sleeps"]


def save_model(folder: Path, base: Path, *, pad: int | None = 0, **config: Any) -> Any:
    """A reward model with large weights, so that every token matters; `pad` goes into its config."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value) if value.ndim > 1 else 0.0)
    model.config.pad_token_id = pad
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return model.eval()


def own(model: Any, rows: list[list[int]]) -> list[float]:
    """By plain transformers, each row alone and unpadded."""
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


@pytest.mark.parametrize("pad", [0, 1, 9, None], ids=["its own", "eos", "a word of the texts", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_is_read_where_its_own_forward_reads_it(
    policy_path: Path, tmp_path: Path, pad: int | None, side: str, pairs: Dataset
) -> None:
    """Laplace's reward too, whose prompts are shared; the tokenizer has no pad token where the config has none."""
    model = save_model(tmp_path, policy_path, pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side=side)
    tokenizer.pad_token = None if pad is None else tokenizer.pad_token
    tokenizer.save_pretrained(tmp_path)
    source = IndependentMembers.from_models([tmp_path], device="cpu")
    expected = torch.tensor(own(model, source.members[0].encoder(PROMPTS, COMPLETIONS)))
    torch.testing.assert_close(source.score(PROMPTS, COMPLETIONS)[:, 0], expected, rtol=0, atol=1e-6)
    for distance in (0.0, 1.0):
        laplace = fit_laplace(pairs, tmp_path, LaplaceConfig(distance=distance, distance_features=8), device="cpu")
        torch.testing.assert_close(laplace.score(PROMPTS, COMPLETIONS)[:, 0], expected, rtol=0, atol=1e-6)
    source.save(tmp_path / "saved")
    again = load_source(tmp_path / "saved", device="cpu").score(PROMPTS, COMPLETIONS)[:, 0]
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


def test_a_score_that_pools_otherwise_is_left_to_its_own_forward(policy_path: Path, tmp_path: Path) -> None:
    """A few architectures have a linear `score` and take the first token, or the mean."""
    model = save_model(tmp_path, policy_path)
    assert decoder_head(model) is model.score
    first = save_model(tmp_path / "first", policy_path)
    plain = first.forward
    first.forward = lambda input_ids, **rest: plain(input_ids=input_ids[:, :1])
    assert decoder_head(first) is None
    encoder = load_encoder(tmp_path, first, 64)
    found = IndependentMembers([Member(first, encoder)]).score(PROMPTS, COMPLETIONS)[:, 0]
    torch.testing.assert_close(found, torch.tensor(own(first, encoder(PROMPTS, COMPLETIONS))), rtol=2e-6, atol=1e-6)


READERS: dict[str, Callable[[Path, Dataset], Any]] = {
    "models": lambda path, pairs: IndependentMembers.from_models([path], device="cpu"),
    "laplace": lambda path, pairs: fit_laplace(pairs, path, LaplaceConfig(), device="cpu"),
    "dropout": lambda path, pairs: DropoutMembers.from_model(path, DropoutConfig(2), device="cpu"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_checkpoint_without_its_head_is_refused(
    reader: str, policy_path: Path, encoder_path: Path, tmp_path: Path, pairs: Dataset
) -> None:
    """A policy whose config has one label, and a BERT of which only the pooler is missing."""
    for name, base in (("policy", policy_path), ("bert", encoder_path)):
        folder = tmp_path / name
        save_model(folder, base)
        AutoConfig.from_pretrained(folder)
        weights = folder / "model.safetensors"
        from safetensors.torch import load_file, save_file

        lost = {"policy": "score.", "bert": "bert.pooler."}[name]
        kept = {key: value for key, value in load_file(weights).items() if not key.startswith(lost)}
        save_file(kept, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"not a trained reward model.*no {re.escape(lost)}"):
            READERS[reader](folder, pairs)


def test_two_labels_are_refused_as_a_reward_and_replaced_as_a_base(policy_path: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=2).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(policy_path).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification\) has 2 outputs"):
        IndependentMembers.from_models([tmp_path], device="cpu")
    model, missing = load_base(tmp_path, CPU)
    assert model.score.out_features == 1
    assert missing == ["score.weight"]


def test_a_trunk_that_does_not_fit_its_config_is_not_drawn_anew(policy_path: Path, tmp_path: Path) -> None:
    save_model(tmp_path, policy_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(ModelError, match=r"don't fit its config.json: model\.layers\.0\.mlp"):
        load_base(tmp_path, CPU)
    with pytest.raises(ModelError, match="can't load"):
        IndependentMembers.from_models([tmp_path], device="cpu")


def test_texts_are_cut_to_positions_that_begin_after_the_pad_token(encoder_path: Path, tmp_path: Path) -> None:
    """MPNet counts as RoBERTa does: 34 positions with pad number 1 take 32 tokens; the tokenizer's pad is number 0."""
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, num_labels=1,
    )  # fmt: skip
    model = MPNetForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_path).save_pretrained(tmp_path)
    assert positions(model) == 32
    source = IndependentMembers.from_models([tmp_path], device="cpu")
    encoder = source.members[0].encoder
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=32"):
        rows = encoder(["cat " * 50, "dog "], ["runs", "sleeps"])
    assert [len(row) for row in rows] == [32, 4]
    found = source.score(["cat " * 50, "dog "], ["runs", "sleeps"])[:, 0]
    torch.testing.assert_close(found, torch.tensor(own(model, rows)), rtol=0, atol=1e-6)
    trunk = load_trunk(tmp_path, CPU)
    cut = load_encoder(tmp_path, trunk, 512)
    features = compute_features(trunk, rows, pooling="mean", layer=-1, pad_token_id=cut.tokenizer.pad_token_id)
    with torch.no_grad():
        alone = [trunk(input_ids=torch.tensor([row])).last_hidden_state[0].mean(dim=0) for row in rows]
    torch.testing.assert_close(features, torch.stack(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["tokenizer", "config"])
def test_a_pad_token_outside_the_embedding_is_refused(policy_path: Path, tmp_path: Path, where: str) -> None:
    save_model(tmp_path, policy_path)
    if where == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(tmp_path)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 12}))
    with pytest.raises(ModelError, match=r"12.* embedding .*12 rows"):
        IndependentMembers.from_models([tmp_path], device="cpu")
    with pytest.raises(ModelError, match=r"12.* embedding .*12 rows"):
        load_encoder(tmp_path, load_trunk(tmp_path, CPU), 64)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_bf16_weights_tie_no_rewards(kind: str, policy_path: Path, encoder_path: Path, tmp_path: Path) -> None:
    """400 texts: as many different rewards as in fp32; a head in bf16 leaves about 100."""
    save_model(tmp_path, policy_path if kind == "decoder" else encoder_path)
    source = IndependentMembers.from_models([tmp_path], device="cpu")
    words = ["red", "green", "blue", "cat", "dog"]
    texts = [" ".join(words[(i // 5**k) % 5] for k in range(4)) for i in range(400)]
    exact = source.score([""] * 400, texts)[:, 0]
    source.members[0].model.to(torch.bfloat16)
    rounded = source.score([""] * 400, texts)[:, 0]
    assert len(rounded.unique()) >= len(exact.unique()) == 400
    torch.testing.assert_close(rounded, exact, rtol=0, atol=float(0.3 * exact.std()))


def test_features_are_averaged_in_float32(policy_path: Path) -> None:
    """Of bf16 hidden states: their mean by hand, not rounded to bf16 on the way."""
    trunk = load_trunk(policy_path, CPU).to(torch.bfloat16)
    row = [2 + i % 10 for i in range(40)]
    found = compute_features(trunk, [row], pooling="mean", layer=-1, pad_token_id=0)
    with torch.no_grad():
        states = trunk(input_ids=torch.tensor([row])).last_hidden_state[0]
    torch.testing.assert_close(found[0], states.double().mean(dim=0).float(), rtol=0, atol=1e-6)


def test_a_template_keeps_the_frame_of_a_bert(encoder_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(encoder_path)
    encoder = TextEncoder(tokenizer, 16)
    chat = [[{"role": "user", "content": "the cat"}]], [[{"role": "assistant", "content": "runs"}]]
    with pytest.raises(ModelError, match="has no chat template"):
        encoder(*chat)
    plain = encoder(["the cat "], ["runs"])
    tokenizer.chat_template = TEMPLATE
    assert encoder(*chat) == plain
    assert (plain[0][0], plain[0][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    tokenizer.chat_template = "[CLS] " + TEMPLATE + "[SEP]"  # one that writes them itself
    assert encoder(*chat) == plain


def test_messages_are_refused_before_a_model_is_loaded(
    encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model, a saved source and a source in memory; plain text goes."""
    save_model(tmp_path / "model", encoder_path)
    source = IndependentMembers.from_models([tmp_path / "model"], device="cpu")
    source.save(tmp_path / "source")
    monkeypatch.setattr(BertForSequenceClassification, "__init__", lambda *_: pytest.fail("a model was loaded"))
    messages: Any = [{"role": "user", "content": "cat"}]
    for place in ("model", "source"):
        check_templates([tmp_path / place], "cat")
        with pytest.raises(ModelError, match="has no chat template"):
            check_templates([tmp_path / place], messages)
    with pytest.raises(ModelError, match="has no chat template"):
        source.check_reads(messages)


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would wait for an answer on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    save_model(tmp_path, policy_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "code.Strange")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    for load in (lambda: IndependentMembers.from_models([tmp_path]), lambda: load_trunk(tmp_path, CPU)):
        with pytest.raises(ModelError, match=r"trust_remote_code|custom code"):
            load()
