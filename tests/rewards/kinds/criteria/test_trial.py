"""Criteria are tried as they would be decided in training; what is kept is what was sent, said, read and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.source import CriteriaSource
from surefoot.rewards.kinds.criteria.trial import try_criteria
from surefoot.rewards.kinds.judge.trial_texts import TrialText
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated, reply

CAT, CLEAR = Criterion("Has a cat.", 3.0), Criterion("How clear.", 1.0, scale=(1, 5))
LONG = Criterion("Is long.", 2.0, kind="function", function="long", required=True)


def made(server: JudgeServer | str, tmp_path: Path, *criteria: Criterion, **settings: Any) -> CriteriaSource:
    usual: dict[str, Any] = {
        "endpoint": server if isinstance(server, str) else server.endpoint,
        "structured": "none",
        "samples": 2,
        "retries": 1,
        "backoff_s": 0.01,
        "cache": str(tmp_path / "replies.sqlite"),
    }
    functions = {"long": lambda prompt, completion: len(completion) > 3}
    return CriteriaSource("m", CriteriaConfig(**(usual | settings)), criteria={"p": criteria}, functions=functions)


def texts(*completions: str) -> list[TrialText]:
    return [TrialText("p", completion, completion) for completion in completions]


def act(request: Request) -> Act:
    """Finds every cat in the first sample alone, and is moderately clear."""
    if "CRITERIA" in request.texts:
        return Act(reply(json.dumps({"1": 1 - request.sample, "2": 3})))
    return rated(1 - request.sample if "cat" in request.texts["CRITERION"] else 3)


@pytest.mark.parametrize("asking", ["each", "together"])
def test_by_hand(asking: str, tmp_path: Path) -> None:
    """P = 6. The long one: 2 + 3·(1 or 0) + 1·½, of one reply 5.5/6 or 2.5/6, so 4/6 with the variance ½·(3/6)²."""
    with JudgeServer(act) as server:
        source = made(server, tmp_path, LONG, CAT, CLEAR, asking=asking)
        trial = try_criteria(source, texts("a long one", "no"))
        sent = [request.body["messages"] for request in server.requests]
        scores = source.score(["p", "p"], ["a long one", "no"])
    first, second = trial.completions
    assert len(sent) == len(trial.calls) == (4 if asking == "each" else 2)
    assert sorted(map(str, sent)) == sorted(str(call.messages) for call in trial.calls)
    assert (first.mean, first.variance) == (pytest.approx(4 / 6), pytest.approx(1 / 8))
    assert [item.mean for item in trial.completions] == pytest.approx(scores[:, 0].tolist())
    assert [(one.answers, one.answer) for one in first.criteria] == [([1], 1), ([1, 0], 0.5), ([0.5, 0.5], 0.5)]
    assert [one.kind for one in first.criteria] == ["function", "judged", "judged"]
    assert (second.mean, second.variance, second.calls, second.decided) == (0, 0, [], True)
    questions = ["criterion 2", "criterion 3"] if asking == "each" else ["all criteria"]
    assert list(dict.fromkeys(call.question for call in first.calls)) == questions
    ratings: list[Any] = [1, 0, 0.5, 0.5] if asking == "each" else [(1, 0.5), (0, 0.5)]
    assert [call.rating for call in first.calls] == ratings
    assert (trial.replies, trial.read, trial.error, trial.scale) == (len(sent), len(sent), None, None)
    assert "4 of 4 criteria have an answer." in trial.verdict  # of the second, the judged ones aren't asked about
    json.dumps(trial.to_dict(), allow_nan=False)


def test_nothing_is_kept_and_functions_run_once(tmp_path: Path) -> None:
    runs: list[object] = []

    def long(prompt: object, completion: object) -> bool:
        runs.append(completion)
        return True

    with JudgeServer(act) as server:
        source = made(server, tmp_path, CAT, LONG)
        source.verifiers.functions["long"] = long
        source.score(["p"], ["x"])
        before, heard = source.totals(), (source.heard.replies, source.heard.criteria)
        trial = try_criteria(source, texts("x"))
        assert len(server.requests) == 4
        assert source.totals() == before
    assert runs == ["x", "x"]
    assert (source.heard.replies, source.heard.criteria) == heard
    assert trial.totals.replies == 2


def test_what_can_not_be_read_is_missing(tmp_path: Path) -> None:
    with JudgeServer(lambda r: Act(reply("no idea")) if "clear" in r.texts["CRITERION"] else act(r)) as server:
        trial = try_criteria(made(server, tmp_path, CAT, CLEAR), texts("x"))
    (item,) = trial.completions
    assert [one.answer for one in item.criteria] == [0.5, None]
    assert (item.mean, item.variance) == (None, None)
    said = "\n".join(trial.verdict)
    assert "2 of 4 replies could be read (50%)." in said
    assert "What to do: ask for JSON" in said
    assert "1 of 2 criteria have an answer." in said
    assert "left 1 of 1 completions unscored" in said


def test_replies_that_leave_criteria_out(tmp_path: Path) -> None:
    with JudgeServer(lambda r: Act(reply('{"1": 1}'))) as server:
        trial = try_criteria(made(server, tmp_path, CAT, CLEAR, asking="together"), texts("x"))
    assert [call.rating for call in trial.calls] == [(1, None), (1, None)]
    told = "2 replies leave criteria out. Raise max_tokens if they are cut off, or set asking: each."
    assert told in trial.verdict


def test_verifiers_alone(tmp_path: Path) -> None:
    trial = try_criteria(made("http://127.0.0.1:9/v1", tmp_path, LONG), texts("a long one", "no"))
    assert [item.mean for item in trial.completions] == [1, 0]
    assert [item.variance for item in trial.completions] == [0, 0]
    assert (trial.calls, trial.request, trial.totals.calls) == ([], {}, 0)
    assert trial.verdict == ["2 of 2 criteria have an answer."]


def test_from_which_criteria_were_drawn(tmp_path: Path) -> None:
    """Contributions 3/4·1 and 1/4·½: m·Σ(d − d̄)²/(m − 1) = 2·2·(5/16)²."""
    with JudgeServer(lambda r: rated(1 if "cat" in r.texts["CRITERION"] else 3)) as server:
        source = made(server, tmp_path, CAT, CLEAR, variance_from="criteria", samples=1)
        trial = try_criteria(source, texts("x"))
    assert trial.completions[0].variance == pytest.approx(4 * (5 / 16) ** 2)


def test_what_is_refused(tmp_path: Path) -> None:
    source = made("http://127.0.0.1:9/v1", tmp_path, CAT)
    with pytest.raises(ConfigError, match="give at least one"):
        try_criteria(source, [])
    with pytest.raises(DataError, match="has no criteria for the prompt"):
        try_criteria(source, [TrialText("another", "x", "x")])
    with pytest.raises(ModelError, match=r"no connection to http://127\.0\.0\.1:9/v1: start the server"):
        try_criteria(source, texts("x"))
