"""Small sources behind the application, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fastapi.testclient import TestClient

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
from surefoot.serving.app import create_app
from surefoot.serving.settings import ServeArguments
from tests.models import WORDS, save_policy


def features(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
    """Three members that read the whole text; they raise on "broken", and leave "unknown" unscored."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = json.dumps([prompt, completion])
        if "broken" in text:
            raise RuntimeError(f"secret words: {text}")
        x = float(sum(map(ord, text)) % 97) / 10
        rows.append([float("nan")] * 3 if "unknown" in text else [x, x * 1.1 + len(text) % 5, 0.5 * x - 1])
    return rows


def members(function: Callable[..., Any] = features, *, calibrated: bool = True) -> FunctionMembers:
    source = FunctionMembers(function, 3, "three")
    if calibrated:
        source.calibrate(torch.tensor(features(["p"] * 24, [f"{a} {b}" for a in WORDS[:6] for b in WORDS[6:]])))
    return source


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[LinearReward, Path]:
    """A calibrated linear source on a tiny decoder, and where it is saved."""
    folder = tmp_path_factory.mktemp("linear")
    rows = [(f"the {WORDS[i % 5]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 7]} and") for i in range(24)]
    pairs = Dataset.from_dict(
        {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))}
    )
    source = fit_linear(pairs, save_policy(folder / "policy"), LinearConfig(layer=0), device="cpu")
    source.calibrate(source.score(pairs["prompt"], pairs["chosen"]))
    source.save(folder / "source")
    return source, folder / "source"


@pytest.fixture
def client_of() -> Iterator[Callable[..., TestClient]]:
    """Makes a client of the application with a source and settings."""
    with contextlib.ExitStack() as stack:

        def make(source: Any, **settings: Any) -> TestClient:
            app = create_app(source, ServeArguments("given", **settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Served:
    """A server in a process of its own."""

    def __init__(self, command: list[str], port: int, log: Path, environment: dict[str, str]) -> None:
        self.url, self.port, self.log = f"http://127.0.0.1:{port}", port, log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, env=os.environ | environment)

    def wait(self, seconds: float = 240.0) -> Served:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError), self.get("/ready") as response:
                assert response.status == 200
                return self
            time.sleep(0.1)
        raise AssertionError(f"not ready in {seconds} s: {self.log.read_text()}")

    def get(self, path: str) -> Any:
        return urllib.request.urlopen(self.url + path, timeout=60)

    def post(self, path: str, payload: Any) -> Any:
        body = json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `surefoot serve`, or `tests/serving/slow_server.py` where no source is given; stops them in the end."""
    running: list[Served] = []

    def make(*words: str, port: int | None = None, **environment: str) -> Served:
        port = port or free_port()
        command = [sys.executable, "-m", "surefoot.cli.main", "serve", "--port", str(port), *words]
        if not any(word == "--reward_source" for word in words):
            command = [sys.executable, "-m", "tests.serving.slow_server", "--port", str(port), *words]
        running.append(Served(command, port, tmp_path / f"log-{len(running)}", environment))
        return running[-1]

    yield make
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()
