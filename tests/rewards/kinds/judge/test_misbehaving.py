"""A server that misbehaves: the right number of tries, missing and never 0, and no hang beyond the deadline."""

import logging
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from email.utils import formatdate
from typing import Any

import pytest
import torch

from surefoot.errors import ConfigError, ModelError, RunError
from surefoot.rewards.kinds.judge.server import retry_after
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated, reply

Make = Callable[..., JudgeSource]


def good(request: Request) -> Act:
    return rated(number_in(request))


def at_first(act: Act, times: int = 1) -> Callable[[Request], Act]:
    """Badly the first times that a call comes, then well."""
    return lambda request: act if request.again < times else good(request)


@pytest.mark.parametrize(
    "act",
    [
        Act(status=500),
        Act(status=503, body=b"<html>busy</html>"),
        Act(status=429),
        Act(status=408),
        Act(refuse=True),
        Act(body=b"<html>proxy</html>"),
        Act(body=reply('{"rating": 7}'), cut=40),
        Act(body=reply('{"rating": 7}')[:-20]),
        Act(body=b'{"choices": "none"}'),
        Act(body=reply(7)),
        Act(body=b""),
    ],
    ids=["500", "503", "429", "408", "refused", "garbage", "cut", "truncated", "types", "content", "empty"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_tried_again_and_missing_in_the_end(act: Act, times: int, judge: Make) -> None:
    """Two retries: after one failure there is a rating; after three there is none, and no fourth try."""
    with JudgeServer(at_first(act, times)) as server:
        source = judge(server, samples=2)
        if times == 1:
            assert source.score(["p"], ["7"]).tolist() == [[7.0, 7.0, 0.0, 2.0]]
            assert sorted(server.seen.values()) == [2, 2]
            assert source.totals().retries == 2
        else:
            with pytest.warns(UserWarning, match="left 1 of 1 completions unscored"):
                scores = source.score(["p"], ["7"])
            assert bool(scores.isnan().all())
            assert sorted(server.seen.values()) == [3, 3]
            assert source.totals().calls == 2
            assert sum(source.totals().missing.values()) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_repeated(status: int, judge: Make) -> None:
    act = Act(status=status, body=b'{"error": {"message": "too long for me"}}')
    said = f"3 × HTTP {status}.*the endpoint said: .*too long for me"
    with (
        JudgeServer(lambda request: act if request.texts["ANSWER"] == "5" else good(request)) as server,
        pytest.warns(UserWarning, match=said),
    ):
        scores = judge(server).score(["p"] * 2, ["5", "7"])
    assert scores[:, 0].isnan().tolist() == [True, False]
    assert set(server.seen.values()) == {1}


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_can_never_succeed_stops_the_run(status: int, judge: Make) -> None:
    with JudgeServer(lambda request: Act(status=status, delay=0.01)) as server:
        source = judge(server, concurrency=2)
        with pytest.raises(ModelError, match=r"can't judge with 'm': it .*no key was sent"):
            source.score(["p"] * 50, [f"{i}" for i in range(50)])
        assert len(server.requests) <= 4


def test_a_prompt_that_is_forbidden_is_missing_where_others_succeed(judge: Make) -> None:
    with (
        JudgeServer(lambda r: Act(status=403) if r.texts["ANSWER"] == "6" else good(r)) as server,
        pytest.warns(UserWarning, match="HTTP 403"),
    ):
        scores = judge(server, concurrency=1).score(["p"] * 2, ["5", "6"])
    assert scores[:, 0].isnan().tolist() == [False, True]


@pytest.mark.parametrize("header", ["seconds", "date", "ms"])
def test_retry_after_is_honoured(header: str, judge: Make) -> None:
    headers = {
        "seconds": lambda: {"retry-after": "0.6"},
        "date": lambda: {"retry-after": formatdate(time.time() + 2, usegmt=True)},
        "ms": lambda: {"retry-after-ms": "600"},
    }[header]
    with JudgeServer(lambda r: good(r) if r.again else Act(status=429, headers=headers())) as server:
        assert judge(server, samples=2, concurrency=1).score(["p"], ["7"])[0, 0] == 7
    first, second = server.requests[:2]
    assert 0.55 < second.time - first.time < 4
    assert set(server.seen.values()) == {2}


def test_all_calls_wait_for_a_retry_after(judge: Make) -> None:
    """One 429 holds back the others too, rather than each finding out for itself."""
    answers = iter([Act(status=429, headers={"retry-after": "0.7"})])
    with JudgeServer(lambda request: next(answers, good(request))) as server:
        judge(server, concurrency=1, samples=6).score(["p"], ["7"])
    times = [request.time for request in server.requests]
    assert all(t - times[0] > 0.65 for t in times[1:])


def test_a_retry_after_past_the_deadline_stops_the_run(judge: Make) -> None:
    """Not a batch that is unscored at once, of which nobody would know that an hour later it could be scored."""
    limited = Act(status=429, headers={"retry-after": "3600"})
    with JudgeServer(lambda r: limited if r.texts["ANSWER"] == "5" else good(r)) as server:
        source = judge(server, samples=2, deadline_s=3, concurrency=1)
        start = time.monotonic()
        with pytest.raises(RunError, match=r"HTTP 429 and asks to wait 3600 s \(Retry-After\), longer than dead"):
            source.score(["p"] * 30, ["7", *["5"] * 29])
        assert time.monotonic() - start < 3
        assert len(server.requests) == 3
        assert source.totals().replies == 2  # what came before is kept
        assert source.totals().missing == {"HTTP 429": 1}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"retry-after-ms": "nan", "retry-after": "2"}, 2),
        ({"retry-after-ms": "-5", "retry-after": "2"}, 2),
        ({"retry-after-ms": "", "retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Thu, 99 Jan 2026 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_what_a_retry_after_says(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_an_infinite_retry_after_is_no_reason_to_stop(judge: Make) -> None:
    with JudgeServer(at_first(Act(status=429, headers={"retry-after": "inf"}))) as server:
        assert judge(server, samples=2).score(["p"], ["7"])[0, 0] == 7


def test_an_absurd_usage_is_booked_as_none(judge: Make) -> None:
    """Counts that no file holds: the calls are booked at four characters a token."""
    usage = {"prompt_tokens": 10**30, "completion_tokens": 10**30}
    with JudgeServer(lambda r: Act(reply('{"rating": 7}', usage=usage))) as server:
        source = judge(server, samples=6)
        assert source.score(["p"], ["7"])[0, 3] == 6
        found = source.totals()
    assert found.replies == 6
    assert found.tokens == (6 * source.questions.calls("p", "7", None)[0].prompt_tokens, 6 * 4)


@pytest.mark.parametrize("limit", [20, 8, 5])
def test_as_many_alternatives_as_the_server_allows(limit: int, judge: Make) -> None:
    """Found out by the first calls and remembered; a prompt that is refused for itself teaches nothing."""

    def act(request: Request) -> Act:
        if request.body["top_logprobs"] > limit or "rude" in str(request.body):
            return Act(status=400, body=b'{"error": {"message": "no"}}')
        tops = [{"token": t, "logprob": lp} for t, lp in (("8", -0.2), ("7", -2.0))]
        return Act(reply("8", logprobs={"content": [{**tops[0], "top_logprobs": tops}]}))

    with JudgeServer(act) as server:
        source = judge(server, reading="logprobs", concurrency=1)
        with pytest.warns(UserWarning, match="1 × HTTP 400"):
            assert bool(source.score(["p"], ["rude"]).isnan().all())
        assert not bool(source.score(["p"], ["b"]).isnan().any())
        assert not bool(source.score(["p"], ["c"]).isnan().any())
        asked = [request.body["top_logprobs"] for request in server.requests]
        found = [20, 8, 5][: [20, 8, 5].index(limit) + 1]
        assert asked == [20, 8, 5, *found, limit]
        judge(server, reading="logprobs").score(["q"], ["d"])
        assert [request.body["top_logprobs"] for request in server.requests][len(asked) :] == [limit]
        assert max(server.seen.values()) == 1  # each way has its own Idempotency-Key
    with JudgeServer(act) as server:
        with nullcontext() if limit >= 8 else pytest.warns(UserWarning, match="HTTP 400"):
            judge(server, reading="logprobs", top_logprobs=8).score(["q"], ["d"])
        assert [request.body["top_logprobs"] for request in server.requests] == [8]


@pytest.mark.parametrize(
    ("content", "settings", "why", "advice"),
    [
        ("I'd rather\nnot.", {}, "no rating in the reply", "structured: json_schema"),
        ("8/10", {}, "rating on another scale", "a rubric with its scale"),
        ("", {}, "empty reply", "raise it, or turn thinking off"),
        ("<think>A rating of 3", {}, "empty reply: a thought alone", "turn thinking off"),
        ("8", {"reading": "logprobs"}, "no log-probabilities in the reply", "set reading: samples"),
    ],
)
def test_a_judge_that_gives_no_rating_is_stopped_early(
    content: str, settings: dict[str, Any], why: str, advice: str, judge: Make
) -> None:
    """20 replies are enough to see it, not the whole dataset; one is shown."""
    with JudgeServer(lambda r: Act(reply(content))) as server:
        source = judge(server, concurrency=2, **settings)
        shown = " ".join(content.split()) or "it is empty"
        with pytest.raises(ModelError, match=rf"× {re.escape(why)}") as error:
            source.score(["p"] * 300, [f"{i}" for i in range(300)])
        assert 20 <= len(server.requests) <= 30
    assert shown in str(error.value)
    assert "What to do: " in str(error.value)
    assert advice in str(error.value)


def test_single_unreadable_replies_stop_nothing(judge: Make) -> None:
    """One rating among the first is enough to go on, also over small batches; the warning shows a reply."""
    with JudgeServer(lambda r: good(r) if r.texts["ANSWER"] == "7" else Act(reply("Hm."))) as server:
        source = judge(server, concurrency=1)
        source.score(["p"], ["7"])
        with pytest.warns(UserWarning, match=r"left 20 of 20 .*one reply without a rating: “Hm.”"):
            source.score(["p"] * 20, ["x" * (i + 1) for i in range(20)])
    assert source.heard.line == "replies with a rating: 3 of 63 (5%); 60 × no rating in the reply"


def test_no_server_at_all(judge: Make) -> None:
    source = judge("http://127.0.0.1:9/v1")
    with pytest.warns(UserWarning, match="3 × no connection"):
        assert bool(source.score(["p"], ["7"]).isnan().all())
    assert source.totals().retries == 6


def test_a_try_times_out_and_is_repeated(judge: Make) -> None:
    with JudgeServer(at_first(Act(delay=30))) as server:
        assert judge(server, timeout_s=0.5).score(["p"], ["7"])[0, 0] == 7
    assert set(server.seen.values()) == {2}


@pytest.mark.parametrize("act", [Act(delay=60), Act(body=reply("7"), drip=0.2)], ids=["silence", "drip"])
def test_no_hang_beyond_the_deadline(act: Act, judge: Make) -> None:
    """Neither silence nor a byte now and then outlasts it; both completions have their own."""
    with JudgeServer(lambda request: act) as server:
        start = time.monotonic()
        with pytest.warns(UserWarning, match="deadline|timeout"):
            scores = judge(server, deadline_s=1.0, timeout_s=0.6).score(["p"] * 2, ["7", "8"])
        assert 0.9 < time.monotonic() - start < 5
    assert bool(scores.isnan().all())


def test_a_whole_response_that_comes_twice_answers_one_request(judge: Make) -> None:
    """The second copy must not be taken for the reply to the connection's next request."""
    with JudgeServer(lambda r: Act(reply(f'{{"rating": {number_in(r)}}}'), twice=True)) as server:
        found = judge(server, samples=1, concurrency=1).score(["p"] * 6, [f"{i}" for i in range(1, 7)])
    assert found[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_replies_from_a_proxy_s_cache_are_no_replicates(judge: Make) -> None:
    """The same reply for each sample says nothing of the variance: the copies are missing."""
    with JudgeServer(lambda r: rated(7, id=r.texts["ANSWER"])) as server:
        with pytest.warns(UserWarning, match="4 × a copy of another reply"):
            scores = judge(server).score(["p"] * 2, ["7", "8"])
        assert bool(scores.isnan().all())
        assert judge(server, min_valid=1).score(["p"] * 2, ["7", "8"])[:, 3].tolist() == [1, 1]
    with JudgeServer(lambda r: rated(7, id="always")) as server:  # an id that means nothing
        assert judge(server).score(["p"] * 2, ["7", "8"])[:, 3].tolist() == [3, 3]


def test_unreadable_replies_are_paid_for_once_and_missing(judge: Make) -> None:
    contents = ['{"rating": 7}', "no idea", '{"rating": 11}', '{"rating": true}']
    with JudgeServer(lambda r: Act(reply(contents[r.sample]))) as server:
        source = judge(server, samples=4, min_valid=1)
        assert source.score(["p"], ["x"]).nan_to_num(-1).tolist() == [[7.0, 7.0, -1.0, 1.0]]
        with pytest.warns(UserWarning, match="fewer than 2 valid replies"):
            assert bool(judge(server, samples=4).score(["p"], ["x"]).isnan().all())
    assert len(server.requests) == 4


def test_concurrency_is_kept_and_used(judge: Make) -> None:
    with JudgeServer(lambda r: rated(7, delay=0.05)) as server:
        judge(server, concurrency=5, samples=2).score(["p"] * 20, [f"{i}" for i in range(20)])
        assert server.most_at_once == 5


def test_requests_per_minute(judge: Make) -> None:
    """300 a minute are 5 a second, with a burst of 5."""
    with JudgeServer(good) as server:
        judge(server, requests_per_minute=300, samples=2).score(["p"] * 6, [f"{i}" for i in range(1, 7)])
    times = sorted(request.time for request in server.requests)
    assert times[11] - times[0] > 1.2
    assert times[4] - times[0] < 1.0


def test_tokens_per_minute(judge: Make) -> None:
    with JudgeServer(good) as server:
        source = judge(server, tokens_per_minute=60 * 1200, samples=2, max_tokens=8)
        call = source.questions.calls("p", "1", None)[0]
        source.score(["p"] * 6, [f"{i}" for i in range(1, 7)])
    times = sorted(request.time for request in server.requests)
    assert times[11] - times[0] > (12 * call.likely_tokens - 1200) / 1200 - 0.3


def test_waiting_for_our_own_rate_is_not_the_server_s_delay(judge: Make) -> None:
    with JudgeServer(good) as server:
        scores = judge(server, requests_per_minute=120, samples=4, deadline_s=1.0).score(["p"] * 2, ["3", "4"])
    assert not bool(scores.isnan().any())


@pytest.mark.parametrize("budget", [{"budget_tokens": 1500}, {"budget_money": 0.0015}], ids=["tokens", "money"])
def test_a_budget_stops_cleanly_and_goes_on(budget: dict[str, Any], judge: Make) -> None:
    prices = {"price_input": 1.0, "price_output": 1.0}
    texts = [f"{i}" for i in range(1, 10)]
    with JudgeServer(lambda r: rated(number_in(r), delay=0.02)) as server:
        source = judge(server, max_tokens=8, concurrency=4, **prices, **budget)
        with pytest.raises(RunError, match=r"the budget of 1500 tokens|the budget of 0\.0015 in money"):
            source.score(["p"] * 9, texts)
        paid = len(server.requests)
        spent = source.totals()
        assert sum(spent.tokens) <= 1500
        assert spent.replies == paid >= 8
        with pytest.raises(RunError, match="is spent"):
            judge(server, max_tokens=8, **prices, **budget).score(["p"] * 9, texts)
        assert len(server.requests) <= paid + 4  # what was held back for replies in flight is free again
        scores = judge(server, max_tokens=8, **prices).score(["p"] * 9, texts)
        assert scores[:, 0].tolist() == list(range(1, 10))
        assert set(server.seen.values()) == {1}


def has_form(request: Request) -> bool:
    return "response_format" in request.body


def test_the_form_of_json_is_found_out_by_the_first_calls(judge: Make) -> None:
    """Those in flight at once may all be refused, and go again; after them no request has the form."""

    def act(request: Request) -> Act:
        refused = Act(status=400, body=b'{"error": {"message": "response_format?"}}')
        return refused if has_form(request) else good(request)

    texts = [str(1 + i % 9) for i in range(20)]
    with JudgeServer(act) as server:
        scores = judge(server, structured="auto", concurrency=4).score([f"p{i}" for i in range(20)], texts)
        assert scores[:, 0].tolist() == [1 + i % 9 for i in range(20)]
        tried = sum(map(has_form, server.requests))
        assert 1 <= tried <= 4
        assert len(server.requests) == 3 * 20 + tried
        judge(server, structured="auto").score(["p"], ["5"])
        assert sum(map(has_form, server.requests)) == tried  # remembered with the replies
    with JudgeServer(good) as server:
        judge(server, structured="auto").score(["p"] * 2, ["1", "2"])
        assert len(server.requests) == 6
        assert all(r.body["response_format"]["type"] == "json_schema" for r in server.requests)


def test_once_the_form_is_known_a_refusal_is_of_what_is_said(judge: Make) -> None:
    def act(request: Request) -> Act:
        refused = Act(status=400, body=b'{"error": {"message": "no"}}')
        return refused if "rude" in str(request.body) else good(request)

    with JudgeServer(act) as server:
        judge(server, structured="auto", samples=2).score(["p"], ["1"])
        with pytest.warns(UserWarning, match="left 1 of 2 completions unscored"):
            scores = judge(server, structured="auto", samples=2).score(["p"] * 2, ["rude 2", "3"])
        assert scores.isnan()[:, 0].tolist() == [True, False]
        assert all(map(has_form, server.requests))
        assert len(server.requests) == 6
    with JudgeServer(act) as server:  # refused before anything is known: once more without the form
        with pytest.warns(UserWarning, match="unscored"):
            judge(server, structured="auto", samples=2).score(["q"], ["rude 4"])
        assert sorted(map(has_form, server.requests)) == [False, False, True, True]
        judge(server, structured="auto", samples=2).score(["q"], ["5"])
        assert all(map(has_form, server.requests[4:]))  # nothing was learnt from it


def test_the_key_is_nowhere_but_in_the_request(
    judge: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    key = "sk-secret-0123456789abcdef"
    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level(logging.DEBUG)
    said = f'{{"error": {{"message": "Incorrect API key provided: {key}, that is {key[:8]}***{key[-4:]}"}}}}'.encode()
    with JudgeServer(lambda r: Act(status=401, body=said)) as server:
        source = judge(server, key_variable="MY_KEY")
        with pytest.raises(ModelError, match=r"it refuses the key .*\[key\].*; key from MY_KEY") as error:
            source.score(["p"], ["7"])
        assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    act = Act(status=400, body=said)
    with JudgeServer(lambda r: act) as server, pytest.warns(UserWarning, match=r"\[key\]") as warned:
        judge(server, key_variable="MY_KEY").score(["p"], ["7"])
    source.save(tmp_path / "source")
    texts = [str(error.value), repr(error.value.__cause__), repr(source), repr(source.config), str(vars(source))]
    texts += [str(warning.message) for warning in warned] + [caplog.text]
    texts += [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for text in texts:
        assert key not in text
        assert key[:8] not in text


def test_a_key_that_is_not_set(judge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable MY_KEY holds no key"):
        judge("http://127.0.0.1:9/v1", key_variable="MY_KEY").score(["p"], ["7"])


def test_openai_s_key_goes_to_nobody_else(judge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with JudgeServer(good) as server:
        judge(server).score(["p"], ["7"])
        assert "sk-openai" not in str(server.requests[0].headers)


async def _inside(source: JudgeSource) -> torch.Tensor:
    return source.score(["p"], ["7"])


def test_where_a_loop_runs_already(judge: Make) -> None:
    import asyncio

    with JudgeServer(good) as server:
        assert asyncio.run(_inside(judge(server)))[0, 0] == 7
