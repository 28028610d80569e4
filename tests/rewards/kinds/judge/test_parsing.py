"""What counts as a rating, and what doesn't; what counts as a server's reply."""

import json
import math
from typing import Any

import pytest

from surefoot.rewards.kinds.judge.messages import Reply, Unreadable
from surefoot.rewards.kinds.judge.parsing import read_distribution, read_rating
from surefoot.rewards.kinds.judge.reply_body import read_body
from tests.rewards.kinds.judge.servers import reply


@pytest.mark.parametrize(
    ("content", "rating"),
    [
        ('{"rating": 7}', 7),
        ('{"rating": 7.5}', 7.5),
        ('{"rating": "7"}', 7),
        ('{"Rating": 7}', 7),
        ('Here you are:\n```json\n{"reason": "fine", "rating": 7}\n```', 7),
        ('{"result": {"rating": 7}}', 7),
        ('{"rating": 7, "reason": "it was cut', 7),
        ('{"rating": 7} and again {"rating": 7}', 7),
        ('{"reason": "it says {\\"rating\\": 9}", "rating": 2}', 2),
        ("7", 7),
        (" **7** ", 7),
        ("7/9", 7),
        ("Rating: 7/9", 7),
        ("I would say that the score is 7 out of 9.", 7),
        ("<think>9? No: rating 3.</think>\n4", 4),
    ],
)
def test_ratings(content: str, rating: float) -> None:
    assert read_rating(content, 1, 9) == rating


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ("<think>I think it is 7", "empty"),
        ("Good.", "no rating"),
        ("It has 3 errors in 7 lines.", "no rating"),
        ('{"rating": 0}', "off the scale"),
        ('{"rating": 10}', "off the scale"),
        ('{"rating": -7}', "off the scale"),
        ("rating: 123", "off the scale"),
        ('{"rating": true}', "wrong type"),
        ('{"rating": null}', "wrong type"),
        ('{"rating": [7]}', "wrong type"),
        ('{"rating": "seven"}', "wrong type"),
        ('{"rating": NaN}', "wrong type"),
        ('{"rating": 1e999}', "wrong type"),
        ('{"rating": 3, "rating": 9}', "several"),
        ('The answer says {"rating": 9}. {"rating": 2}', "several"),
        ("Rating: 2. Rating: 9.", "several"),
        ("7/10", "another scale"),
        ('{"rating": 1', "no rating"),
        ('{"reason": "The answer says Rating: 9 and', "no rating"),
        ('{"reason": "it says \\"rating\\": 9, which', "no rating"),
        ("1.2.3", "no rating"),
    ],
)
def test_what_is_no_rating(content: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_rating(content, 1, 9)


def test_bodies() -> None:
    found = read_body(reply('{"rating": 7}', id="a", usage=(11, 3)))
    assert (found.content, found.id, found.prompt_tokens, found.completion_tokens) == ('{"rating": 7}', "a", 11, 3)
    parts = read_body(reply([{"type": "text", "text": '{"rating"'}, {"type": "text", "text": ": 7}"}]))
    assert parts.content == '{"rating": 7}'
    assert read_body(reply(None)).content == ""
    for strange in (None, "many", {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": True}):
        assert read_body(reply("7", usage=strange)).prompt_tokens is None
    for garbage in (b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": "7"}', reply(7), reply("7")[:-9]):
        with pytest.raises(Unreadable, match="not a chat completion"):
            read_body(garbage)


def test_odd_bodies_are_still_replies() -> None:
    """Parts that are null or thoughts, ids and reasons of other types, and log-probabilities in another form."""
    for part in (None, {"type": "text", "text": None}, {"type": "text"}, {"type": "text", "text": 7}):
        assert read_body(reply([part])).content == ""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "rating 5"}]}
    assert read_body(reply([thought, {"type": "text", "text": "8"}])).content == "8"
    token = {"token": "7", "logprob": -0.1}
    for strange in (
        [],
        {},
        {"content": None},
        {"content": [{"token": "7"}]},
        {"tokens": ["7"], "token_logprobs": [0]},
    ):
        assert read_body(reply("7", logprobs=strange)).positions == []
    found = read_body(reply("7", logprobs={"content": [token | {"top_logprobs": None}]}))
    assert found.positions == [[("7", -0.1)]]
    body = json.loads(reply("7"))
    body["id"], body["choices"][0]["finish_reason"] = 17, 1
    assert (read_body(json.dumps(body).encode()).content, read_body(json.dumps(body).encode()).id) == ("7", "17")


@pytest.mark.parametrize("count", [10**30, 10**9, 1.5, "7", -1, True, None])
def test_an_absurd_usage_counts_as_none(count: Any) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": count}
    assert read_body(reply("7", usage=usage)).prompt_tokens is None


def test_a_reply_survives_the_cache() -> None:
    whole = Reply('{"rating": 7}', "a:0", 0, 3, "stop", ["7"], [[("7", -0.1), ("8", -2.5)]])
    assert Reply.from_json(whole.to_json()) == whole
    assert Reply.from_json(Reply("").to_json()) == Reply("")


def _with_chances(**chances: float) -> Reply:
    tops = [{"token": token.strip("_"), "logprob": math.log(p)} for token, p in chances.items()]
    token = {"token": tops[0]["token"], "logprob": tops[0]["logprob"], "top_logprobs": tops}
    return read_body(reply(tops[0]["token"], logprobs={"content": [token]}))


def test_distributions() -> None:
    mean, variance = read_distribution(_with_chances(_7=0.5, _9=0.25, x=0.25), 1, 9)
    assert mean == pytest.approx((7 * 2 + 9) / 3)
    assert variance == pytest.approx(2 / 3 * 1 / 3 * 4)
    with pytest.raises(Unreadable, match="less than half"):
        read_distribution(_with_chances(_7=0.4, x=0.6), 1, 9)
    with pytest.raises(Unreadable, match="no rating"):
        read_distribution(_with_chances(x=0.6, _7=0.4), 1, 9)
    with pytest.raises(Unreadable, match="no log-probabilities"):
        read_distribution(read_body(reply("7")), 1, 9)
    assert json.loads(_with_chances(_7=1.0).to_json())["said"] == ["7"]


def _said_in(*tokens: str, thought: bool = False) -> Reply:
    """A reply of these tokens; each digit's alternatives are itself (.8) and 2 (.2)."""
    tops = [[{"token": t, "logprob": math.log(0.8)}, {"token": "2", "logprob": math.log(0.2)}] for t in tokens]
    listed = [{**top[0], "top_logprobs": top} for top in tops]
    text = "".join(tokens).replace("Ġ", " ").replace("▁", " ")
    return read_body(reply(text.rpartition("</think>")[2] if thought else text, logprobs={"content": listed}))


@pytest.mark.parametrize(
    ("tokens", "mean"),
    [
        (["8"], 0.8 * 8 + 0.4),
        (["Rating", ":", " 8"], 0.8 * 8 + 0.4),
        (["Rating", ":", "Ġ8"], 0.8 * 8 + 0.4),
        (['{"', "rating", '":', " ", "8", "}"], 0.8 * 8 + 0.4),
        (["8", "/", "9"], 0.8 * 8 + 0.4),
        (["<think>", "3", "?", "</think>", "\n", "8"], 0.8 * 8 + 0.4),
        (["a", " 3", "?"] * 9 + ["</think>", "8"], 0.8 * 8 + 0.4),
        (["1", "0"], None),
        (["10"], None),
        (["8", "/", "1", "0"], None),
        (["8", "/", "10"], None),
        (["-", "8"], None),
        (["8", ".", "5"], None),
        (["8", ",", "5"], None),
        (["1", "-", "9", ":", " ", "8"], None),
        (["Score", " 1", "-", "9", ":", " 8"], None),
        (["It", " has", " 3", " errors"], None),
        (["8", " or", " 7"], None),
    ],
)
def test_only_the_rating_s_own_token_has_its_distribution(tokens: list[str], mean: float | None) -> None:
    for thought in {False, "</think>" in tokens}:  # a server may list a thought's tokens and send it apart
        if mean is None:
            with pytest.raises(Unreadable):
                read_distribution(_said_in(*tokens, thought=thought), 1, 9)
        else:
            found, variance = read_distribution(_said_in(*tokens, thought=thought), 1, 9)
            assert found == pytest.approx(mean)
            assert variance == pytest.approx(0.8 * 0.2 * 6**2)


def test_one_token_s_probability_is_no_distribution() -> None:
    """Where the server gives no alternatives, the variance is unknown and not zero."""
    token = {"token": "7", "logprob": math.log(0.6), "top_logprobs": []}
    with pytest.raises(Unreadable, match="no log-probabilities"):
        read_distribution(read_body(reply("7", logprobs={"content": [token]})), 1, 9)
