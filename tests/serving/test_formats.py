"""Each engine's request and response, as its own client writes and reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from surefoot.data.messages import is_cut
from surefoot.serving.formats import FORMATS, Answer, Query, Refusal, Row

ANSWER = Answer([1.5, 2.5], 2.0, 0.5, 1.25, [1.5, 2.5], "reference")
SAID = [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "hello"}]
EXTRAS = {"variance": 0.5, "weight": 1.25, "anchor": "reference"}


def read(route: str, payload: Any) -> list[Row]:
    return FORMATS[route].read(payload).rows


def write(route: str, count: int = 1) -> dict[str, Any]:
    rows = [Row("p", "c")] * count
    return FORMATS[route].write(Query(rows, model="m"), [ANSWER] * count)


def test_openrlhf() -> None:
    payload = {"query": ["<s>say 1:hello</s>", "other"], "prompts": ["<s>say 1:", "say 2:"], "labels": ["", ""]}
    assert read("/get_reward", payload) == [Row("<s>say 1:", "hello</s>"), Row("other", "")]
    extra = {"variance": [0.5], "weight": [1.25], "anchored": [1.0]}
    assert write("/get_reward") == {"rewards": [2.0], "scores": [2.0], "extra_logs": extra}
    other = FORMATS["/get_reward"].write(Query([Row("p", "c")]), [replace(ANSWER, anchor="calibration")])
    assert other["extra_logs"]["anchored"] == [0.0]
    without = FORMATS["/get_reward"].write(Query([Row("p", "c")]), [Answer([1.0], 1.0)])
    assert without["extra_logs"] == {}


def test_verl_with_vllm() -> None:
    payload = {"model": "m", "input": "<|user|>say 1<|assistant|>hello", "use_activation": False}
    assert read("/classify", payload) == [Row("<|user|>say 1<|assistant|>hello", "")]
    answer = write("/classify", 2)
    assert answer["data"][-1]["probs"][-1] == 2.0
    assert answer["data"][1] == {"index": 1, "label": "LABEL_0", "probs": [2.0], "num_classes": 1, **EXTRAS}
    assert (answer["object"], answer["model"]) == ("list", "m")
    with pytest.raises(Refusal, match="use_activation"):
        read("/classify", payload | {"use_activation": True})


def test_verl_with_sglang() -> None:
    assert read("/v1/embeddings", {"model": "m", "input": ["one", "two"]}) == [Row("one", ""), Row("two", "")]
    assert write("/v1/embeddings")["data"] == [{"index": 0, "object": "embedding", "embedding": [2.0], **EXTRAS}]


def test_vllm_pooling() -> None:
    assert read("/pooling", {"model": "m", "messages": SAID}) == [Row(SAID[:1], SAID[1:])]
    assert write("/pooling")["data"] == [{"index": 0, "object": "pooling", "data": [2.0], **EXTRAS}]


def test_vllm_score() -> None:
    rows = [Row("q", "a"), Row("q", "b")]
    assert read("/score", {"model": "m", "text_1": "q", "text_2": ["a", "b"]}) == rows
    assert read("/score", {"queries": ["q", "q"], "documents": ["a", "b"]}) == rows
    assert read("/score", {"text_1": "q", "text_2": "a"}) == rows[:1]
    assert write("/score")["data"] == [{"index": 0, "object": "score", "score": 2.0, **EXTRAS}]
    with pytest.raises(Refusal, match="2 of text_1 for 3"):
        read("/score", {"text_1": ["q", "r"], "text_2": ["a", "b", "c"]})


def test_slime() -> None:
    assert read("/rm", {"prompt": "say 1:", "response": "hello", "label": ""}) == [Row("say 1:", "hello")]
    assert read("/rm", {"prompt": SAID[:1], "response": "hello", "label": None}) == [Row(SAID[:1], SAID[1:])]
    assert write("/rm") == {"reward": 2.0, **EXTRAS}


def test_our_own() -> None:
    payload = {"prompts": ["a", SAID[:1]], "completions": ["b", SAID[1:]], "cut": [False, True]}
    rows = read("/v1/rewards", payload)
    assert rows == [Row("a", "b"), Row(SAID[:1], SAID[1:])]
    assert [is_cut(row.completion) for row in rows] == [False, True]
    query = FORMATS["/v1/rewards"].read(
        {"prompt": "a", "completions": ["b"], "reference": [{"prompt": "a", "completions": ["c", "d"]}]}
    )
    assert query.references == [("a", ["c", "d"])]
    broken = Answer(error="too odd")
    assert FORMATS["/v1/rewards"].write(query, [ANSWER, broken]) == {
        "mean": [2.0, None],
        "variance": [0.5, None],
        "weight": [1.25, None],
        "members": [[1.5, 2.5], None],
        "anchor": ["reference", None],
        "errors": {"1": "too odd"},
    }
    raw = FORMATS["/v1/rewards"].read({"prompt": "a", "completions": ["b"], "rows": True})
    unscored = Answer([float("nan"), 1.0])
    assert FORMATS["/v1/rewards"].write(raw, [ANSWER, unscored, broken]) == {
        "rows": [[1.5, 2.5], [None, 1.0], None],
        "errors": {"2": "too odd"},
    }


@pytest.mark.parametrize("route", [route for route in FORMATS if route != "/v1/rewards"])
def test_a_row_without_a_reward_refuses_an_engines_request(route: str) -> None:
    for fault, status in (("row", 422), ("model", 500)):
        with pytest.raises(Refusal, match="row 0 has no reward: why") as raised:
            FORMATS[route].write(Query([Row("p", "c")]), [Answer(error="why", fault=fault)])
        assert raised.value.status == status


WRONG: list[tuple[str, Any, str]] = [
    ("/v1/rewards", {}, "completions must be a list of at least one"),
    ("/v1/rewards", {"prompt": "a", "completions": []}, "at least one text"),
    ("/v1/rewards", {"completions": ["a"]}, "give prompt"),
    ("/v1/rewards", {"prompt": "a", "prompts": ["a"], "completions": ["a"]}, "and not both"),
    ("/v1/rewards", {"prompts": ["a", "b"], "completions": ["a"]}, "2 prompts for 1"),
    ("/v1/rewards", {"prompt": "a", "completions": ["a"], "row": True}, "unknown field 'row'"),
    ("/v1/rewards", {"prompt": "a", "completions": ["a"], "rows": 1}, "rows must be true or false"),
    ("/v1/rewards", {"prompt": "a", "completions": ["a"], "cut": [1]}, "cut must hold"),
    ("/v1/rewards", {"prompt": "a", "completions": ["a"], "rows": True, "group": True}, "leave out group"),
    ("/v1/rewards", {"prompt": "a", "completions": ["a"], "reference": ["b"]}, r"reference\[0\] must hold"),
    ("/v1/rewards", {"prompt": [{"content": "x"}], "completions": ["a"]}, r"prompt: \[0\] has no role"),
    ("/v1/rewards", {"prompt": "a", "completions": ["\ud800"]}, "half a surrogate"),
    ("/v1/rewards", {"prompt": "a", "completions": [[]]}, "holds no message"),
    ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, "2 prompts for 1"),
    ("/get_reward", {"query": "a"}, "query must be a list"),
    ("/classify", {"input": 3}, "input must be a list"),
    ("/classify", {"input": [3]}, r"input\[0\] must be text"),
    ("/pooling", {"messages": "a"}, "messages must be a list"),
    ("/score", {"text_1": "a"}, "text_2 must be a list"),
    ("/rm", {"prompt": "a"}, "response must be text"),
    ("/rm", {"response": "a"}, "prompt: is NoneType"),
    ("/rm", ["a"], "must be a JSON object"),
]


@pytest.mark.parametrize(("route", "payload", "reason"), WRONG)
def test_what_is_not_of_the_format_is_named(route: str, payload: Any, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as raised:
        read(route, payload)
    assert raised.value.status == 422
    assert raised.value.retry_after is None
