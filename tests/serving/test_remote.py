"""A remote source gives the served source's numbers, in Python and through `surefoot score`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.data.messages import cut_short
from surefoot.errors import ConfigError, ModelError, RowError, RunError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.rewards.kinds.remote import KEY_VARIABLE, URL, RemoteMembers, RemoteReward, RemoteServer, connect
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_dataset import score_dataset
from surefoot.serving.app import create_app
from surefoot.serving.settings import ServeArguments
from tests.serving.conftest import Served, free_port, members

PROMPTS, TEXTS = ["the red ", "the red ", "a "], ["cat runs", "dog sleeps and", "a cat"]


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Serves a source in a thread: its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(source: Any, port: int | None = None, **settings: Any) -> str:
        port = port or free_port()
        app = create_app(source, ServeArguments("given", **settings))
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def same(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_members_are_estimated_here(serving: Callable[..., str]) -> None:
    local = members()
    remote = connect(serving(local))
    assert isinstance(remote, RemoteMembers)
    assert (remote.name, remote.num_members, remote.calibration) == (local.name, 3, local.calibration)
    scores = remote.score([*PROMPTS, "x"], [*TEXTS, "unknown"])
    assert torch.equal(scores[:3], local.score(PROMPTS, TEXTS))
    assert bool(scores[3].isnan().all())
    same(remote.estimate(scores).variance, local.estimate(scores).variance)
    anchors = group_anchors(scores[:3], torch.tensor([0, 0, 1]))
    same(remote.estimate(scores[:3], anchors).variance, local.estimate(scores[:3], anchors).variance)
    assert remote.calibrate(scores[:3]).rows == 3
    with pytest.raises(RowError, match="row 1: the source failed on it"):
        remote.score(["x", "x"], ["fine", "broken"])


def test_a_posterior_is_asked_for_its_arithmetic(
    linear: tuple[LinearReward, Path], serving: Callable[..., str]
) -> None:
    local = linear[0]
    remote = connect(serving(local))
    assert isinstance(remote, RemoteReward)
    scores = remote.score(PROMPTS, TEXTS)
    same(scores, local.score(PROMPTS, TEXTS))
    for anchors in (None, group_anchors(scores, torch.tensor([0, 0, 1]))):
        given, expected = remote.estimate(scores, anchors), local.estimate(scores, anchors)
        same(given.mean, expected.mean)
        same(given.variance, expected.variance)
        assert given.anchor_kinds == expected.anchor_kinds
    margins, expected_margins = remote.margins(scores[:1], scores[1:2]), local.margins(scores[:1], scores[1:2])
    same(margins.mean, expected_margins.mean)
    same(margins.variance, expected_margins.variance)
    remote.calibrate(scores)
    assert remote.calibration is not None
    assert remote.calibration.reference_variance == pytest.approx(float(local.estimate(scores).variance.mean()))
    ended, cut = (local.score(["the "], [text]) for text in ("cat", cut_short("cat")))
    assert not torch.equal(ended, cut)
    same(remote.score(["the "], [cut_short("cat")]), cut)


def test_many_rows_keep_their_order(serving: Callable[..., str]) -> None:
    local, texts = members(), [f"text {i}" for i in range(1500)]
    remote = connect(serving(local, max_rows=256, max_waiting=256))  # four requests at a time don't fit: 429
    assert torch.equal(remote.score(["p"] * 1500, texts), local.score(["p"] * 1500, texts))


def test_a_saved_one_says_neither_address_nor_key(
    tmp_path: Path, serving: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREFOOT_SERVE_KEY", "hidden-key")
    address = serving(members())
    with pytest.raises(ModelError, match="the key is missing or wrong"):
        connect(address)
    connect(address, "hidden-key").save(tmp_path / "remote")
    assert [path.name for path in (tmp_path / "remote").iterdir()] == ["source.json"]
    held = (tmp_path / "remote" / "source.json").read_text()
    shape = {"columns": 3, "num_members": 3}
    assert json.loads(held) == {"kind": "remote", "name": "three", "fingerprint": "unknown", **shape}
    monkeypatch.delenv(URL, raising=False)
    with pytest.raises(ConfigError, match=URL):
        load_source(tmp_path / "remote")
    monkeypatch.setenv(URL, address)
    monkeypatch.setenv(KEY_VARIABLE, "SOME_KEY")
    with pytest.raises(ConfigError, match="SOME_KEY, which holds no key"):
        load_source(tmp_path / "remote")
    monkeypatch.setenv("SOME_KEY", "hidden-key")
    assert load_source(tmp_path / "remote").kind == "remote"
    other = json.loads(held) | {"name": "another"}
    (tmp_path / "remote" / "source.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match="with name 'another', but the server"):
        load_source(tmp_path / "remote")


def test_addresses_that_cannot_be_asked() -> None:
    for address in ("ftp://x", "127.0.0.1:8000", "http://x:key@127.0.0.1", "http://127.0.0.1/?key=x"):
        with pytest.raises(ConfigError):
            RemoteServer(address)
    with pytest.raises(RunError, match=r"no answer \(ConnectionRefusedError\), for 0 s"):
        RemoteServer(f"http://127.0.0.1:{free_port()}", patience_s=0.3).ask("/v1/source")


def test_score_through_a_real_server(
    linear: tuple[LinearReward, Path], start: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, folder = linear
    served = start("--reward_source", str(folder), "--device", "cpu", SUREFOOT_SERVE_KEY="k1").wait()
    monkeypatch.setenv(URL, served.url)
    monkeypatch.setenv(KEY_VARIABLE, "MY_KEY")
    monkeypatch.setenv("MY_KEY", "k1")
    connect().save(tmp_path / "remote")
    table = Dataset.from_dict({"prompt": PROMPTS, "chosen": TEXTS, "rejected": TEXTS[::-1]})
    table.to_json(tmp_path / "pairs.jsonl")
    output = tmp_path / "remote.jsonl"
    words = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--output", str(output)]
    assert main(["score", "--reward_source", str(tmp_path / "remote"), *words]) == 0
    expected = score_dataset(local, table, tmp_path / "local.jsonl")
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (output, expected)]
    for given, wanted in zip(*rows, strict=True):
        assert given == {name: pytest.approx(x, rel=1e-5) if isinstance(x, float) else x for name, x in wanted.items()}
    assert served.end() == 0
