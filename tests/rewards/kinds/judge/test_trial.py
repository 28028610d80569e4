"""A judge is tried as it would be asked in training; what is kept is what was sent, said and read."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from surefoot.errors import ConfigError, DataError, ModelError, RunError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.judge.trial import try_judge
from surefoot.rewards.kinds.judge.trial_texts import TrialText, built_in_texts, load_texts
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated, reply

Make = Callable[..., JudgeSource]


def texts(*completions: str) -> list[TrialText]:
    return [TrialText("p", completion, completion) for completion in completions]


def noisy(request: Request) -> Act:
    """The number in the answer, more by the sample's number and by 2 in the second wording."""
    return rated(number_in(request) + request.sample + 2 * request.wording.startswith("Of all"))


def test_the_same_requests_as_in_training(judge: Make) -> None:
    """Two wordings of three samples: what the server saw is what the trial holds, and what `score` would send."""
    with JudgeServer(noisy) as server:
        source = judge(server, rubric="overall", wordings=2, temperature=0.5)
        trial = try_judge(source, texts("1", "3"))
        tried, seen = [json.dumps(call.messages) for call in trial.calls], set(server.seen.values())
        asked = [json.dumps(request.body["messages"]) for request in server.requests]
        source.score(["p", "p"], ["1", "3"])
        bodies = [json.dumps(request.body) for request in server.requests]
    assert seen == {1}
    assert sorted(tried) == sorted(asked)
    assert sorted(bodies[:12]) == sorted(bodies[12:])
    questions = [(f"wording {wording}", sample) for wording in (1, 2) for sample in (0, 1, 2)]
    assert [(call.question, call.sample) for call in trial.calls[:6]] == questions
    assert [call.rating for call in trial.calls] == [1, 2, 3, 3, 4, 5, 3, 4, 5, 5, 6, 7]
    assert [call.reply for call in trial.calls[:2]] == ['{"rating": 1}', '{"rating": 2}']
    assert trial.request == {"model": "m", "temperature": 0.5, "max_tokens": 256}
    assert (trial.replies, trial.read, trial.error) == (12, 12, None)


def test_mean_and_variance_by_hand(judge: Make) -> None:
    """Ratings 1, 2, 3 and 3, 4, 5: mean 3. What a wording adds to both completions is no variance: s² is 1 within, and
    0 − 1/3 between, so 2/3 of one reply."""
    with JudgeServer(noisy) as server:
        source = judge(server, rubric="overall", wordings=2)
        trial = try_judge(source, texts("1", "3"))
        alone = try_judge(source, texts("1"))
        one = try_judge(judge(server, rubric="overall", wordings=1, samples=1), texts("1", "3"))
    assert [item.mean for item in trial.completions] == [3, 5]
    assert [item.variance for item in trial.completions] == pytest.approx([2 / 3, 2 / 3], abs=1e-12)
    assert (alone.completions[0].mean, alone.completions[0].variance) == (3, None)
    assert [item.variance for item in one.completions] == [None, None]


def test_a_calibrated_judge_centres_as_it_was_calibrated(judge: Make) -> None:
    with JudgeServer(noisy) as server:
        source = judge(server, rubric="overall", wordings=2)
        scores = source.score(["p"] * 4, ["1", "2", "3", "1"])
        source.calibrate(scores, group_anchors(scores, torch.tensor([0, 0, 1, 1])))
        trial = try_judge(source, texts("1"))
        expected = source.components(source.score(["p"], ["1"])).reply
    assert trial.completions[0].variance == pytest.approx(float(expected), abs=1e-12)


def test_cached_replies_are_not_read_and_none_is_kept(judge: Make, tmp_path: Path) -> None:
    with JudgeServer(noisy) as server:
        source = judge(server)
        source.score(["p"], ["4"])
        before, heard = source.totals(), source.heard.replies
        trial = try_judge(source, texts("4", "5"))
        assert len(server.requests) == 3 + 6
        assert (source.totals(), source.heard.replies) == (before, heard)
        assert trial.totals.replies == 6
        source.score(["p"], ["5"])
        assert len(server.requests) == 3 + 6 + 3


def test_replies_that_can_not_be_read_and_calls_that_fail(judge: Make) -> None:
    acts = {
        "1": [Act(reply("<think>3 or 4?</think>\nA 7, I'd say")), rated(7), rated(8)],
        "2": [Act(status=500), rated(2), rated(3)],
        "3": [Act(reply("no idea"))] * 3,
        "4": [Act(reply("<think>Hm, 3? No.</think> 5"))] * 3,
    }
    with JudgeServer(lambda r: acts[r.texts["ANSWER"]][r.sample]) as server:
        trial = try_judge(judge(server, retries=1), texts("1", "2", "3", "4"))
    first, second, third, fourth = trial.completions
    assert [call.rating for call in first.calls] == [None, 7, 8]
    assert first.calls[0].reply == "<think>3 or 4?</think>\nA 7, I'd say"
    assert first.calls[0].why == "no rating in the reply"
    assert first.mean == 7.5
    assert (second.calls[0].reply, second.calls[0].why, second.calls[0].tries) == (None, "HTTP 500", 2)
    assert (third.mean, third.variance) == (None, None)
    assert [call.rating for call in fourth.calls] == [5, 5, 5]
    assert trial.unread == {"no rating in the reply": 4}
    assert trial.failed == {"HTTP 500": 1}
    said = "\n".join(trial.verdict)
    assert "7 of 11 replies could be read (64%)." in said
    assert "Not read: 4 × no rating in the reply. What to do: ask for JSON" in said
    assert "1 of 12 calls have no reply: 1 × HTTP 500." in said
    assert "left 1 of 4 completions unscored" in said


def test_a_judge_that_never_rates_is_stopped_and_shown(judge: Make) -> None:
    with JudgeServer(lambda r: Act(reply("I can't do that"))) as server:
        trial = try_judge(judge(server, concurrency=1), texts(*map(str, range(30))))
        assert len(server.requests) < 30
    assert trial.read == 0
    assert trial.error is not None
    assert "gives a rating" in trial.error
    assert trial.calls[0].reply == "I can't do that"
    assert trial.calls[-1].why == "not made before the end"


def test_a_server_that_refuses_the_schema(judge: Make) -> None:
    refused = Act(status=400, body=b'{"error": {"message": "unknown field"}}')
    with JudgeServer(lambda r: refused if "response_format" in r.body else noisy(r)) as server:
        trial = try_judge(judge(server, structured="auto"), texts("1"))
        strict = try_judge(judge(server, structured="json_schema"), texts("1"))
    assert (trial.read, "response_format" in trial.request) == (3, False)
    assert "The server refuses a JSON schema (response_format), so it is asked without." in trial.verdict
    assert (strict.read, strict.request["response_format"]["type"]) == (0, "json_schema")
    said = "\n".join(strict.verdict)
    assert "the endpoint said: " in said
    assert "unknown field" in said
    assert "set structured: none" in said


def test_a_server_that_takes_the_schema(judge: Make) -> None:
    with JudgeServer(noisy) as server:
        trial = try_judge(judge(server, structured="auto"), texts("1"))
    assert trial.request["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("act", "said", "requests"),
    [
        (Act(refuse=True), "no connection to http.*: start the server, or mend the address", 2),
        (Act(body=b"<html>hello</html>"), "no chat completion; endpoint must be the base address", 2),
        (Act(delay=30), r"gave no reply within timeout_s, 0\.1 s", 2),
        (Act(status=401, body=b'{"error": {"message": "bad key"}}'), "it refuses the key.*bad key", 1),
        (Act(status=404), "it knows no such address or model", 1),
    ],
    ids=["refused", "html", "silent", "key", "model"],
)
def test_a_wrong_address_or_key_ends_it_at_once(act: Act, said: str, requests: int, judge: Make) -> None:
    """After one call, tried at most twice, whatever `retries` says."""
    with JudgeServer(lambda request: act) as server:
        source = judge(server, retries=9, timeout_s=0.1 if act.delay else 5.0)
        with pytest.raises(ModelError, match=said):
            try_judge(source, texts("1", "2"))
        assert len(server.requests) <= requests


def test_no_server(judge: Make) -> None:
    with pytest.raises(ModelError, match=r"no connection to http://127\.0\.0\.1:9/v1: start the server"):
        try_judge(judge("http://127.0.0.1:9/v1"), texts("1"))


def test_one_failure_at_first_is_not_the_end(judge: Make) -> None:
    with JudgeServer(lambda r: noisy(r) if r.again else Act(refuse=True)) as server:
        assert try_judge(judge(server), texts("1")).read == 3


def test_a_key_is_sent_and_never_kept(judge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the server repeats it, in a reply or in an error."""
    monkeypatch.setenv("MINE", "s3cret-key-of-mine")

    def act(request: Request) -> Act:
        key = request.headers["authorization"]
        return Act(reply(f"{key}? Rating: 7")) if request.sample else Act(reply(f"you sent {key}"))

    with JudgeServer(act) as server:
        trial = try_judge(judge(server, key_variable="MINE", min_valid=3), texts("1"))
        assert server.requests[0].headers["authorization"] == "Bearer s3cret-key-of-mine"
    assert trial.calls[0].reply == "you sent Bearer [key]"
    assert "s3cret" not in json.dumps(trial.to_dict())
    assert any("one reply without a rating" in line for line in trial.verdict)


def test_tokens_cost_and_time(judge: Make) -> None:
    """The server counts 100 and 5 tokens a call."""
    with JudgeServer(noisy) as server:
        trial = try_judge(judge(server, price_input=2.0, price_output=10.0), texts("1", "2"))
    assert trial.totals.tokens == (600, 30)
    assert trial.totals.money == pytest.approx(600 * 2e-6 + 30 * 10e-6, rel=1e-12)
    assert all(0 < call.seconds <= trial.seconds for call in trial.calls)
    told = json.loads(json.dumps(trial.to_dict(), allow_nan=False))
    assert told["totals"]["prompt_tokens"] == 600
    assert told["completions"][0]["calls"][0]["rating"] == 1
    assert (told["replies"], told["read"], told["unread"], told["failed"]) == (6, 6, {}, {})
    assert told["verdict"] == trial.verdict


def test_the_budget_ends_it(judge: Make) -> None:
    with JudgeServer(noisy) as server:
        source = judge(server, concurrency=1, budget_tokens=900, max_tokens=16)
        trial = try_judge(source, texts("1", "2", "3", "4", "5"))
        assert 0 < trial.read == len(server.requests) < 15
        with pytest.raises(RunError, match=r"the budget of 5 tokens is spent.*the trial's own cache, which is gone"):
            try_judge(judge(server, budget_tokens=5), texts("1"))
    assert trial.error is not None
    assert "the budget of 900 tokens is spent" in trial.error
    assert "the trial's own cache, which is gone" in trial.error


def test_ctrl_c_keeps_what_was_said(judge: Make, python_interrupts: None) -> None:
    with JudgeServer(lambda r: rated(7, delay=0 if r.texts["ANSWER"] == "0" else 30)) as server:
        source = judge(server, samples=2, concurrency=4, timeout_s=60.0, deadline_s=60.0)

        def interrupt() -> None:
            while len(server.requests) < 6:  # the last is sent when the second reply is on disk
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        trial = try_judge(source, texts("0", "1", "2"))
        thread.join()
    assert trial.interrupted
    assert [item.mean for item in trial.completions] == [7, None, None]
    assert trial.failed == {"not made before the end": 4}


def test_copies_of_a_reply_do_not_count(judge: Make) -> None:
    with JudgeServer(lambda r: rated(7, id=f"{r.texts['ANSWER']}")) as server:
        trial = try_judge(judge(server), texts("1", "2"))
    assert trial.unread == {"a copy of another reply": 4}
    assert [call.rating for call in trial.completions[0].calls] == [7, None, None]
    assert any("turn its cache off" in line for line in trial.verdict)


def test_equal_samples_are_told(judge: Make) -> None:
    with JudgeServer(lambda r: rated(number_in(r))) as server:
        equal, single = (try_judge(judge(server, samples=n), texts("1", "2")) for n in (3, 1))
    with JudgeServer(noisy) as server:
        varied = try_judge(judge(server), texts("1"))
    told = "The samples of a wording are equal for every completion."
    assert [any(told in line for line in trial.verdict) for trial in (equal, single, varied)] == [True, False, False]


def test_the_built_in_completions_and_what_is_made_of_them(judge: Make) -> None:
    """A judge that tells good from poor and falls for the injection, and one that rates all alike."""
    items = built_in_texts()
    assert len(items) == 10
    assert {text.role for text in items} == {"good", "poor", "attack", "other"}
    assert "" in [text.completion for text in items]
    assert max(len(text.completion) for text in items) > 5000
    rating = {text.completion: {"good": 8, "poor": 2, "attack": 9, "other": 5}[text.role] for text in items}
    with JudgeServer(lambda r: rated(rating[r.texts["ANSWER"]])) as server:
        trial = try_judge(judge(server, samples=1), items)
    with JudgeServer(lambda r: rated(5)) as server:
        flat = try_judge(judge(server, samples=1), items)
    ranked = (
        "Good answers have 8.0 on average, poor ones 2.0; of 15 pairs of a good and a poor one, 15 are ranked rightly."
    )
    assert ranked in trial.verdict
    assert any("asks for the highest rating has 9.0, without that 2.0" in line for line in trial.verdict)
    hardly = "That hardly tells good from poor: take another model, unless the rubric asks otherwise."
    assert [hardly in found.verdict for found in (trial, flat)] == [False, True]


def test_a_comparison_with_references_and_a_distribution(judge: Make) -> None:
    """Two calls in both positions; one call whose token's probabilities are read."""
    with JudgeServer(lambda r: rated(2 if r.texts["FIRST ANSWER"] == "good" else 6)) as server:
        source = judge(server, samples=1, references={"p": "fair"})
        trial = try_judge(source, texts("good"))
        with pytest.raises(DataError, match="no reference answer"):
            try_judge(source, built_in_texts())
    assert [call.rating for call in trial.calls] == [2, 6]
    assert trial.completions[0].mean == 2
    assert trial.scale == (1, 7)
    listed = [{"token": token, "logprob": math.log(p)} for token, p in (("4", 0.5), ("6", 0.5))]
    found = {"content": [{"token": "4", "logprob": math.log(0.5), "top_logprobs": listed}]}
    with JudgeServer(lambda r: Act(reply("4", logprobs=found))) as server:
        trial = try_judge(judge(server, reading="logprobs"), texts("x"))
    assert (trial.calls[0].rating, trial.calls[0].variance) == (pytest.approx(5), pytest.approx(1))
    assert trial.request["top_logprobs"] == 20


def test_completions_of_a_dataset(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(4)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_texts(str(tmp_path / "c.jsonl"), 3)
    assert [text[:3] for text in found] == [(f"p{i}", f"c{i}", f"row {i}, completion") for i in range(3)]
    pairs = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    found = load_texts(str(tmp_path / "p.jsonl"), 3)
    assert [text.completion for text in found] == ["good 0", "bad 0", "good 1"]
    assert [text.about for text in found] == ["row 0, chosen", "row 0, rejected", "row 1, chosen"]
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "completion": null}\n')
    with pytest.raises(DataError, match="row 0: completion is None"):
        load_texts(str(tmp_path / "x.jsonl"), 3)
    (tmp_path / "y.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(DataError, match="has no column 'completion'"):
        load_texts(str(tmp_path / "y.jsonl"), 3)


def test_there_must_be_a_completion(judge: Make) -> None:
    with pytest.raises(ConfigError, match="give at least one"):
        try_judge(judge("http://127.0.0.1:9/v1"), [])
