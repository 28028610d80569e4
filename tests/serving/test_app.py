"""Routes give the source's own numbers, and refuse what they must with its status and reason."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.function import FunctionReward
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.rewards.source import RewardSource
from surefoot.serving.settings import ServeArguments
from surefoot.types import Anchors
from tests.serving.conftest import features, members

Make = Callable[..., TestClient]
PROMPT, TEXTS = "the red ", ["cat runs", "dog sleeps and", "a cat", "blue dog"]


def post(client: TestClient, route: str, payload: Any, status: int = 200) -> Any:
    response = client.post(route, json=payload)
    assert response.status_code == status, response.text
    return response.json()


@pytest.fixture(params=["members", "linear"])
def source(request: pytest.FixtureRequest, linear: tuple[LinearReward, Path]) -> RewardSource:
    return members() if request.param == "members" else linear[0]


def near(given: Sequence[float | None], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(given, dtype=torch.float64), expected.double(), rtol=1e-5, atol=1e-7)


def test_rewards_are_the_sources_own(source: RewardSource, client_of: Make) -> None:
    client = client_of(source)
    answer = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS})
    scores = source.score([PROMPT] * 4, TEXTS)
    expected = source.estimate(scores)
    assert source.calibration is not None
    near(answer["mean"], expected.mean)
    near(answer["variance"], expected.variance)
    near(answer["weight"], (expected.variance / source.calibration.reference_variance).clamp(0.1, 10.0))
    assert answer["anchor"] == ["calibration"] * 4
    assert answer["errors"] == {}
    if expected.members is not None:
        for given, row in zip(answer["members"], expected.members, strict=True):
            near(given, row)
    raw = post(client, "/v1/rewards", {"prompts": [PROMPT] * 4, "completions": TEXTS, "rows": True})
    torch.testing.assert_close(torch.tensor(raw["rows"]), scores, rtol=1e-5, atol=1e-6)


def test_a_group_is_its_own_anchor_where_the_client_says_so(source: RewardSource, client_of: Make) -> None:
    prompts = [PROMPT, PROMPT, "a ", PROMPT]
    answer = post(client_of(source), "/v1/rewards", {"prompts": prompts, "completions": TEXTS, "group": True})
    scores = source.score(prompts, TEXTS)
    expected = source.estimate(scores, group_anchors(scores, torch.tensor([0, 0, 1, 0])))
    near(answer["variance"], expected.variance)
    assert answer["anchor"] == ["group", "group", "calibration", "group"]


def test_an_anchor_is_made_of_the_first_reference_completions(source: RewardSource, client_of: Make) -> None:
    client = client_of(source)
    reference = [{"prompt": PROMPT, "completions": TEXTS[2:]}]
    first = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS, "reference": reference})
    assert first["anchor"] == ["reference"] * 4
    anchor = source.score([PROMPT] * 2, TEXTS[2:]).double().mean(dim=0)
    given = Anchors(anchor.expand(4, -1), "reference", torch.full((4,), 2.0))
    near(first["variance"], source.estimate(source.score([PROMPT] * 4, TEXTS), given).variance)
    other = [{"prompt": PROMPT, "completions": ["red"]}]
    again = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS, "reference": other})
    near(again["variance"], torch.tensor(first["variance"]))
    alone = post(client, "/get_reward", {"query": [PROMPT + TEXTS[0]], "prompts": [PROMPT], "labels": [""]})
    near(alone["extra_logs"]["variance"], torch.tensor(first["variance"][:1]))


def test_an_engines_end_token_tells_finished_completions_from_cut_ones(linear: Any, client_of: Make) -> None:
    client, ending = client_of(linear[0]), client_of(linear[0], end_of_text="<eos>")
    wanted = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS[:2], "cut": [False, True]})
    query = [f"{PROMPT}{TEXTS[0]}<eos>", f"{PROMPT}{TEXTS[1]}"]
    answer = post(ending, "/get_reward", {"query": query, "prompts": [PROMPT] * 2, "labels": ["", ""]})
    near(answer["rewards"], torch.tensor(wanted["mean"]))
    whole = post(client, "/get_reward", {"query": query, "prompts": [PROMPT] * 2, "labels": ["", ""]})
    assert abs(whole["rewards"][1] - answer["rewards"][1]) > 1e-4


def test_anchors_come_from_a_file(tmp_path: Path, client_of: Make) -> None:
    source = members()
    store = AnchorStore(source.name, 2)
    store.add([PROMPT], source.score([PROMPT] * 2, TEXTS[:2]))
    path = store.save(tmp_path / "anchors.safetensors")
    answer = post(
        client_of(source, anchor_file=str(path)), "/v1/rewards", {"prompts": [PROMPT, "a "], "completions": TEXTS[:2]}
    )
    assert answer["anchor"] == ["reference", "calibration"]
    near(answer["variance"][:1], source.estimate(source.score([PROMPT], TEXTS[:1]), store.of([PROMPT])).variance)


def test_anchors_of_clients_outlive_a_restart(tmp_path: Path, client_of: Make) -> None:
    memory, payload = str(tmp_path / "anchors.sqlite"), {"prompt": PROMPT, "completions": TEXTS}
    reference = [{"prompt": PROMPT, "completions": TEXTS[:2]}]
    client = client_of(members(), anchor_memory=memory, workers=2)
    first = post(client, "/v1/rewards", payload | {"reference": reference})
    assert post(client_of(members(), anchor_memory=memory), "/v1/rewards", payload) == first
    other = members(lambda prompts, completions: [[2 * x for x in row] for row in features(prompts, completions)])
    with pytest.raises(DataError, match="another source"):
        client_of(other, anchor_memory=memory)


def test_reference_completions_are_refused_where_workers_would_differ(client_of: Make) -> None:
    payload = {"prompt": PROMPT, "completions": TEXTS, "reference": [{"prompt": PROMPT, "completions": TEXTS}]}
    refusal = post(client_of(members(), workers=2), "/v1/rewards", payload, 422)
    assert "anchor_memory" in refusal["error"]["message"]
    full = client_of(members(), max_anchors=1)
    post(full, "/v1/rewards", payload)
    other = payload | {"reference": [{"prompt": "a ", "completions": TEXTS}]}
    assert "max_anchors" in post(full, "/v1/rewards", other, 507)["error"]["message"]


def test_an_uncalibrated_source_gives_raw_rows_alone(client_of: Make) -> None:
    client = client_of(members(calibrated=False))
    answer = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS[:1]})
    assert "isn't calibrated" in answer["errors"]["0"]
    raw = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS[:1], "rows": True})
    near(raw["rows"][0], torch.tensor(features([PROMPT], TEXTS[:1])[0]))
    assert post(client, "/rm", {"prompt": PROMPT, "response": "x"}, 422)


def test_one_broken_row_errs_and_the_batch_does_not(client_of: Make) -> None:
    client = client_of(members())
    texts = [*TEXTS, "broken", "unknown", *TEXTS]
    answer = post(client, "/v1/rewards", {"prompt": PROMPT, "completions": texts})
    assert answer["errors"] == {"4": "the source failed on it (RuntimeError)", "5": "the source left it unscored"}
    assert answer["mean"][4] is None
    assert answer["mean"][:4] == answer["mean"][6:]
    engine = post(client, "/get_reward", {"query": ["broken"], "prompts": [""], "labels": [""]}, 500)
    assert engine["error"]["message"] == "row 0 has no reward: the source failed on it (RuntimeError)"
    assert post(client, "/score", {"text_1": "a", "text_2": ["unknown"]}, 422)["error"]["code"] == 422
    counts = client.get("/metrics").text
    assert 'surefoot_rows_total{worker="' in counts
    assert 'outcome="failed"} 2' in counts


def test_a_weight_is_within_its_bounds(client_of: Make) -> None:
    """Of variances 0, .25 and 400 over a reference variance of 1: what a trainer here would take."""
    source = FunctionReward(lambda prompts, completions: ([1.0, 2.0, 3.0], [0.0, 0.25, 400.0]), "given")
    client = client_of(source, reference_variance=1.0)
    answer = post(client, "/v1/rewards", {"prompt": "p", "completions": ["a", "b", "c"]})
    assert answer["weight"] == [0.1, 0.25, 10.0]


def test_a_web_page_is_refused(client_of: Make) -> None:
    """A browser names the page that sends; a request of text needs no permission of the server's."""
    client = client_of(members())
    for origin in ("https://example.org", "http://127.0.0.1:8000", "null"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        response = client.post("/v1/rewards", content='{"prompt": "p", "completions": ["a"]}', headers=headers)
        assert response.status_code == 403
    assert client.get("/v1/source", headers={"Origin": "https://example.org"}).status_code == 403


def test_a_key_is_asked_for_in_three_ways(monkeypatch: pytest.MonkeyPatch, client_of: Make) -> None:
    monkeypatch.setenv("SUREFOOT_SERVE_KEY", "kéy-1")
    client, payload = client_of(members()), {"prompt": PROMPT, "response": "x"}
    refused = client.post("/rm", json=payload)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer key-1", "Basic !", "Bearer", ""):
        assert client.post("/rm", json=payload, headers={"Authorization": wrong}).status_code == 401
    basic = base64.b64encode("x:kéy-1".encode()).decode()
    assert client.post("/rm", json=payload, headers={"Authorization": f"Basic {basic}"}).status_code == 200
    assert client.post("/rm?key=k%C3%A9y-1", json=payload).status_code == 200
    monkeypatch.setenv("SUREFOOT_SERVE_KEY", "plain")
    bearer = client_of(members())
    assert bearer.post("/rm", json=payload, headers={"Authorization": "Bearer plain"}).status_code == 200
    assert [bearer.get(path).status_code for path in ("/health", "/ready", "/metrics", "/v1/source")] == [
        *(200, 200, 401, 401)
    ]


HOSTS = {
    **dict.fromkeys(("127.0.0.1", "::1", "localhost", "127.1.2.3"), True),
    **dict.fromkeys(("0.0.0.0", "::", "10.0.0.4", "reward.example"), False),
}


@pytest.mark.parametrize(("host", "fits"), HOSTS.items())
def test_off_loopback_a_key_is_needed(host: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUREFOOT_SERVE_KEY", raising=False)
    args = ServeArguments("s", host=host)
    if fits:
        args.check()
        return
    with pytest.raises(ConfigError, match="holds no key"):
        args.check()
    monkeypatch.setenv("SUREFOOT_SERVE_KEY", "k")
    args.check()


def test_settings_out_of_range_are_refused() -> None:
    for name, value in (("workers", 0), ("port", 70000), ("max_rows", 5000), ("drain_seconds", 0.0)):
        with pytest.raises(ConfigError, match=name):
            ServeArguments("s", **{name: value}).check()


def test_too_much_is_refused_with_413(client_of: Make) -> None:
    client = client_of(members(), max_rows=3, max_characters=100, max_body_mib=1)
    assert "4 rows" in post(client, "/v1/rewards", {"prompt": PROMPT, "completions": TEXTS}, 413)["error"]["message"]
    assert post(client, "/rm", {"prompt": PROMPT, "response": "x" * 200}, 413)
    assert post(client, "/rm", {"prompt": PROMPT, "response": "x" * 2**20}, 413)
    chunks = (b"x" * 65536 for _ in range(64))  # without a content-length
    assert client.post("/rm", content=chunks).status_code == 413


def test_what_cannot_be_read_is_refused_with_422(client_of: Make) -> None:
    client = client_of(members())
    for body in (b"{", b"\xff", b"[" * 100_000, b"[]", b"null"):
        assert client.post("/v1/rewards", content=body).status_code == 422


def slow(started: threading.Event, go: threading.Event) -> FunctionReward:
    def wait(prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[list[float], list[float]]:
        started.set()
        go.wait(60)
        return [1.0] * len(prompts), [1.0] * len(prompts)

    return FunctionReward(wait)


def test_a_full_queue_says_when_to_come_back(client_of: Make) -> None:
    started, go = threading.Event(), threading.Event()
    client = client_of(slow(started, go), max_waiting=2, max_rows=2)
    ours, statuses = {"prompt": "p", "completions": ["a", "b"]}, []

    def send() -> None:
        statuses.append(client.post("/v1/rewards", json=ours).status_code)

    threads = [threading.Thread(target=send) for _ in range(2)]
    threads[0].start()
    started.wait(60)
    threads[1].start()
    while "surefoot_waiting_rows{" not in (text := client.get("/metrics").text) or '"} 2' not in text:
        time.sleep(0.02)
    full = client.post("/v1/rewards", json=ours)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    engine = client.post("/rm", json={"prompt": "p", "response": "x"})
    assert engine.status_code == 503
    assert int(engine.headers["retry-after"]) >= 1
    go.set()
    for thread in threads:
        thread.join()
    assert statuses == [200, 200]


def test_logs_hold_no_text(client_of: Make, caplog: pytest.LogCaptureFixture) -> None:
    from surefoot.serving.logs import JsonLines

    with caplog.at_level("INFO", "surefoot.serve"):
        post(client_of(members()), "/v1/rewards", {"prompt": "zebra", "completions": ["zebra broken", "zebra"]})
        post(client_of(members()), "/rm?key=zebra", {"prompt": ["zebra"], "response": "zebra"}, 422)
        post(client_of(members()), "/v1/rewards", {"prompt": "x", "completions": ["x"], "zebra": 1}, 422)
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any('"error": "RuntimeError"' in line for line in lines)
    assert any('"status": 422' in line for line in lines)
    assert not any("zebra" in line or "secret" in line for line in lines)
