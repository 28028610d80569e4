"""The same ids in training and scoring, for decoders and encoders, with the end of the completion always kept."""

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from surefoot.errors import DataError, ModelError
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs

CHAT = "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} <eos> {% endfor %}"


def test_a_decoder_closes_with_one_eos(policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    encode = TextEncoder(tokenizer, 16)
    (ids,) = encode(["the cat "], ["runs"])
    assert ids == tokenizer("the cat runs")["input_ids"] + [tokenizer.eos_token_id]
    assert encode(["the cat "], ["runs <eos>"]) == [ids]


def test_an_encoder_without_eos_keeps_its_own_ends(encoder_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_path)
    assert tokenizer.eos_token is None
    (ids,) = TextEncoder(tokenizer, 16)(["the cat "], ["runs"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "cat", "runs", "[SEP]"]


def test_cutting_keeps_the_start_sign_and_the_end(encoder_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_path)
    encode = TextEncoder(tokenizer, 4)
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than max_length=4 tokens"):
        (ids,) = encode(["the cat and "], ["dog runs"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "dog", "runs", "[SEP]"]


def test_cutting_a_decoder_keeps_the_last_tokens(policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    encode = TextEncoder(tokenizer, 3)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than max_length=3 tokens.*said once"):
        ids, _ = encode(["the cat and ", "the "], ["dog runs", "cat"])
    encode(["the cat and "], ["dog runs"])  # without another warning
    assert encode.shortened == 2
    assert tokenizer.convert_ids_to_tokens(ids) == ["dog", "runs", "<eos>"]


def test_messages_go_through_the_chat_template(policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.chat_template = CHAT
    prompt = [{"role": "user", "content": "the cat"}]
    completion = [{"role": "assistant", "content": "runs"}]
    (ids,) = TextEncoder(tokenizer, 16)([prompt], [completion])
    assert ids == tokenizer.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=False)
    assert len(ids) == 7


def test_padding_falls_back_to_eos_and_fails_clearly_without_one(policy_path: Path, encoder_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_path)
    tokenizer.pad_token = None
    assert TextEncoder(tokenizer, 8).tokenizer.pad_token == "<eos>"
    bare = AutoTokenizer.from_pretrained(encoder_path)
    bare.pad_token = None
    with pytest.raises(ModelError, match="neither a pad token nor an eos token"):
        TextEncoder(bare, 8)


def test_all_pairs_too_long_names_the_limit_and_the_shortest(policy_path: Path, pairs: Dataset) -> None:
    encode = TextEncoder(AutoTokenizer.from_pretrained(policy_path), 3)
    with pytest.raises(DataError, match=r"all 24 pairs are longer than max_length=3 tokens \(the shortest has 6\)"):
        encode_pairs(pairs, encode)
    with pytest.warns(UserWarning, match="24 of 24 pairs are longer than 3 tokens, cut on the left"):
        cut = encode_pairs(pairs, encode, overlong="truncate")
    assert len(cut) == 24
    assert {len(ids) for ids in cut["chosen_ids"]} == {3}


def test_some_pairs_too_long_are_counted(policy_path: Path) -> None:
    table = Dataset.from_dict(
        {"prompt": ["the "] * 2, "chosen": ["cat", "cat and a cat"], "rejected": ["dog", "dog"], "margin": [1.0, 2.0]}
    )
    encode = TextEncoder(AutoTokenizer.from_pretrained(policy_path), 4)
    with pytest.warns(UserWarning, match="1 of 2 pairs are longer than 4 tokens"):
        kept = encode_pairs(table, encode)
    assert list(kept["margin"]) == [1.0]
