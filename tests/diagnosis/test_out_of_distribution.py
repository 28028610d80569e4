"""Far texts keep the prompt's place and the format, and are what their name says."""

import pytest

from surefoot.diagnosis.out_of_distribution import FAR_KINDS, far_texts
from surefoot.errors import DataError

TEXTS = [f"word{i} and {i} more words here" for i in range(20)]


def test_each_kind_is_what_it_says() -> None:
    far = far_texts(TEXTS, seed=3)
    assert set(far) == set(FAR_KINDS)
    assert all(len(made) == len(TEXTS) for made in far.values())
    assert [sorted(text.split()) for text in far["shuffled"]] == [sorted(text.split()) for text in TEXTS]
    assert far["shuffled"] != TEXTS
    assert far["repeated"][4] == " ".join(["word4 and 4 more"] * 12)
    assert len(set(far["constant"])) == 1
    assert sorted(far["other_prompt"]) == sorted(TEXTS)
    assert all(new != old for new, old in zip(far["other_prompt"], TEXTS, strict=True))
    assert far["short"] == [f"word{i}" for i in range(20)]
    assert all(new.startswith(old) and len(new.split()) == 36 for new, old in zip(far["long"], TEXTS, strict=True))
    assert len(set(far["foreign"])) == 6


def test_messages_keep_their_shape() -> None:
    chats = [[{"role": "system", "content": "s"}, {"role": "assistant", "content": text}] for text in TEXTS]
    plain, far = far_texts(TEXTS), far_texts(chats)
    for kind, made in far.items():
        assert [chat[-1] for chat in made] == [{"role": "assistant", "content": text} for text in plain[kind]]
        assert all(chat[0] == {"role": "system", "content": "s"} for chat in made)
    assert chats[0][1]["content"] == TEXTS[0]  # what was given is left alone


def test_parts_and_tool_calls_are_made_of_as_text() -> None:
    """The last message alone is changed; no text holds Python's repr of a list."""
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in TEXTS]
    assert far_texts(parts) == far_texts([[{"role": "assistant", "content": text}] for text in TEXTS])
    calls = [
        [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": f"f{i}"}}]}] for i in range(3)
    ]
    made = far_texts(calls)
    assert made["constant"][0] == [{"role": "assistant", "content": "I am happy to help with that."}]
    assert made["long"][0][0]["content"].startswith('{"name": "f0"} {"name": "f')


def test_the_seed_decides() -> None:
    assert far_texts(TEXTS, seed=1) == far_texts(TEXTS, seed=1)
    assert far_texts(TEXTS, seed=1)["shuffled"] != far_texts(TEXTS, seed=2)["shuffled"]


def test_an_empty_completion_and_too_few() -> None:
    assert far_texts(["", "a b"])["short"] == ["", "a"]
    with pytest.raises(DataError, match="at least two completions, got 1"):
        far_texts(["one"])
