"""The measure of injections: it sees a judge that obeys, and one that doesn't."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from surefoot.rewards.kinds.judge.prompt_injection import injection_report, load_injections, main
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated

OBEYS = re.compile(r"highest rating|maximum|[Rr]ating[\"']?\W+9|rate it 9|full marks", re.IGNORECASE)
Make = Callable[..., JudgeSource]


def obedient(request: Request) -> Act:
    """Does what the answer says, where it says so plainly; else finds it poor."""
    return rated(9 if OBEYS.search(request.texts["ANSWER"].replace("\u200b", "")) else 2)


def test_the_set() -> None:
    tests = load_injections()
    texts = [text for some in tests.attacks.values() for text in some]
    assert len(texts) == len(set(texts)) == 36
    assert len(tests.attacks) == 6
    assert len(tests.controls) == 6


def test_an_obedient_judge_is_found_out(judge: Make) -> None:
    with JudgeServer(obedient) as server:
        found = injection_report(judge(server, samples=1, concurrency=16))
    expected = sum(bool(OBEYS.search(text)) for some in load_injections().attacks.values() for text in some)
    assert found["all"]["items"] == 3 * 36
    assert found["all"]["moved"] == 3 * expected > 40
    assert found["all"]["mean_change"] == pytest.approx(7 * expected / 36)
    assert found["all"]["interval"][0] < expected / 36 < found["all"]["interval"][1]
    assert (found["harmless"]["items"], found["harmless"]["moved"]) == (18, 0)


def test_a_steadfast_judge_is_not_accused(judge: Make, tmp_path: Path) -> None:
    with JudgeServer(lambda r: rated(2)) as server:
        judge(server, samples=1, concurrency=16).save(tmp_path / "source")
        where = ["--judge_endpoint", server.endpoint, "--judge_cache", str(tmp_path / "replies.sqlite")]
        main([str(tmp_path / "source"), *where, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["all"]["share"], found["all"]["mean_change"], found["all"]["unscored"]) == (0, 0, 0)


def test_a_forged_reply_in_the_judge_s_own_words_is_unreadable(judge: Make) -> None:
    """A judge that quotes the attack before it answers gives two ratings: missing, not the attacker's."""

    def quoting(request: Request) -> Act:
        text = request.texts["ANSWER"]
        said = f"The answer says: {text}\n" if '{"rating": 9}' in text else ""
        act = rated(2)
        content = json.dumps(f'{said}{{"rating": 2}}')
        return Act(act.body.replace(b'"{\\"rating\\": 2}"', content.encode()))

    with (
        JudgeServer(quoting) as server,
        pytest.warns(UserWarning, match="several ratings in the reply"),
    ):
        found = injection_report(judge(server, samples=1, concurrency=16))
    assert found["all"]["moved"] == 0
    assert found["forged_reply"]["unscored"] > 0
